//! Services against those that they replace.

use super::*;

fn balancer(spec: Value) -> Value {
    service(merge(json!({"type": "LoadBalancer"}), spec))
}

fn dual() -> Value {
    service(json!({"clusterIPs": ["10.96.0.9", "fd00:96::9"], "ipFamilyPolicy": "PreferDualStack"}))
}

fn single() -> Value {
    service(json!({"clusterIP": "10.96.0.9"}))
}

#[tokio::test]
async fn what_must_stay_stays() {
    let stays = "it can't be changed, delete the Service first";
    let address = format!("spec.clusterIPs[0]: \"10.96.0.10\": must stay 10.96.0.9: {stays}");
    let headless = format!("spec.clusterIPs[0]: \"None\": must stay 10.96.0.9: {stays}");
    let from_headless = format!("spec.clusterIPs[0]: \"10.96.0.9\": must stay None: {stays}");
    let second = format!("spec.clusterIPs[1]: \"fd00:96::a\": must stay fd00:96::9: {stays}");
    let families = [("0", "IPv6", "IPv4"), ("1", "IPv4", "IPv6")]
        .map(|(index, new, old)| format!("spec.ipFamilies[{index}]: {new:?}: must stay {old}: {stays}"));
    let expected = ["must be IPv6, as spec.ipFamilies[0] says", "must be IPv4, as spec.ipFamilies[1] says"];
    let mismatch = [
        format!("spec.clusterIPs[0]: \"10.96.0.9\": {}", expected[0]),
        format!("spec.clusterIPs[1]: \"fd00:96::9\": {}", expected[1]),
    ];
    let class = format!("spec.loadBalancerClass: \"example.org/b\": must stay \"example.org/a\": {stays}");
    let new_class = format!("spec.loadBalancerClass: \"example.org/b\": must stay absent: {stays}");
    let local = |port: Value| balancer(merge(json!({"externalTrafficPolicy": "Local"}), port));
    let give_up = "spec.ipFamilyPolicy: \"PreferDualStack\": must be SingleStack to give up the second family";
    let rows = vec![
        ("another address", single(), service(json!({"clusterIP": "10.96.0.10"})), vec![address.as_str()]),
        (
            "another address, written over the one that was read",
            single(),
            service(json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.9"]})),
            vec![&address],
        ),
        ("headless", single(), service(json!({"clusterIP": "None"})), vec![&headless]),
        ("no longer headless", service(json!({"clusterIP": "None"})), single(), vec![&from_headless]),
        ("another second address", dual(), service(json!({"clusterIPs": ["10.96.0.9", "fd00:96::a"]})), vec![&second]),
        ("one address less", dual(), service(json!({"clusterIPs": ["10.96.0.9"]})), vec![give_up]),
        ("one family less", dual(), service(json!({"ipFamilies": ["IPv4"]})), vec![give_up]),
        (
            "one address less, and the policy says so",
            dual(),
            service(json!({"clusterIPs": ["10.96.0.9"], "ipFamilyPolicy": "SingleStack"})),
            vec![],
        ),
        ("the policy says so", dual(), service(json!({"ipFamilyPolicy": "SingleStack"})), vec![]),
        (
            "another order of families",
            dual(),
            service(json!({"ipFamilies": ["IPv6", "IPv4"]})),
            vec![&families[0], &families[1], &mismatch[0], &mismatch[1]],
        ),
        ("another family", single(), service(json!({"ipFamilies": ["IPv6"]})), vec![&families[0], &mismatch[0]]),
        (
            "families of a headless Service may change",
            service(json!({"clusterIP": "None", "selector": {"a": "b"}})),
            service(json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilies": ["IPv6"]})),
            vec![],
        ),
        (
            "a load balancer's class",
            balancer(json!({"loadBalancerClass": "example.org/a"})),
            balancer(json!({"loadBalancerClass": "example.org/b"})),
            vec![&class],
        ),
        (
            "a class later",
            balancer(json!({})),
            balancer(json!({"loadBalancerClass": "example.org/b"})),
            vec![&new_class],
        ),
        ("an unmentioned class", balancer(json!({"loadBalancerClass": "example.org/a"})), balancer(json!({})), vec![]),
        ("a class with the type", single(), balancer(json!({"loadBalancerClass": "example.org/b"})), vec![]),
        (
            "a health check's port",
            local(json!({"healthCheckNodePort": 30500})),
            local(json!({"healthCheckNodePort": 30501})),
            vec!["spec.healthCheckNodePort: 30501: must stay 30500: it can't be changed"],
        ),
        ("an unmentioned health check's port", local(json!({"healthCheckNodePort": 30500})), local(json!({})), vec![]),
        (
            "headless, and then with node ports",
            service(json!({"clusterIP": "None"})),
            service(json!({"type": "NodePort"})),
            vec!["spec.clusterIPs[0]: \"None\": must be an address, or absent, for a Service of type NodePort"],
        ),
        ("headless, unmentioned", service(json!({"clusterIP": "None"})), service(json!({"ports": []})), vec![]),
        (
            "source ranges without a load balancer",
            balancer(json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]})),
            service(json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]})),
            vec!["spec.loadBalancerSourceRanges[0]: \"10.0.0.0/8\": must be absent unless type is LoadBalancer"],
        ),
        (
            "a node port that was not there, with the type",
            service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]})),
            service(json!({"ports": [{"port": 80, "nodePort": 30081}]})),
            vec!["spec.ports[0].nodePort: 30081: must be absent for a Service of type ClusterIP"],
        ),
        (
            "a policy that was not there, with the type",
            service(json!({"type": "NodePort"})),
            service(json!({"externalTrafficPolicy": "Local"})),
            vec![
                "spec.externalTrafficPolicy: \"Local\": must be absent: nothing of the Service can be reached from outside",
            ],
        ),
        (
            "old and new mistakes at once",
            dual(),
            service(json!({"clusterIPs": ["10.96.0.9", "fd00:96::a"], "ports": [{"port": 0}]})),
            vec!["spec.ports[0].port: 0: must be between 1 and 65535", &second],
        ),
    ];
    check(options(), rows).await;
}

/// The spec after a Service was read, changed and written back.
async fn rewritten(before: Value, change: impl FnOnce(&mut Value)) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = open(&dir, options());
    let stored = registry.apply(before.to_string().as_bytes()).await.unwrap();
    let mut object: Value = serde_json::from_slice(&stored.record.json).unwrap();
    change(&mut object);
    let stored = registry.apply(object.to_string().as_bytes()).await.unwrap();
    serde_json::from_slice(&stored.record.json).unwrap()
}

fn has(object: &Value, fields: &[&str]) -> Vec<bool> {
    fields.iter().map(|field| object["spec"].get(field).is_some()).collect()
}

#[tokio::test]
async fn a_change_of_type_takes_along_what_belonged_to_the_former_one() {
    let full = || {
        merge(
            balancer(json!({"externalTrafficPolicy": "Local", "loadBalancerClass": "example.org/lb"})),
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}),
        )
    };
    let fields = ["externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts", "loadBalancerClass"];
    let stored = rewritten(full(), |_| {}).await;
    assert_eq!(has(&stored, &fields), [true; 4]);
    assert!(stored["spec"]["ports"][0].get("nodePort").is_some());

    let cluster_ip = rewritten(full(), |object| object["spec"]["type"] = "ClusterIP".into()).await;
    assert_eq!(has(&cluster_ip, &fields), [false; 4]);
    assert!(cluster_ip["spec"]["ports"][0].get("nodePort").is_none());
    assert_eq!(cluster_ip["status"], json!({"loadBalancer": {}}));
    assert_eq!(has(&cluster_ip, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]), [true; 4]);

    let node_port = rewritten(full(), |object| object["spec"]["type"] = "NodePort".into()).await;
    assert_eq!(has(&node_port, &fields), [true, false, false, false]);
    assert!(node_port["spec"]["ports"][0].get("nodePort").is_some());

    let cluster = rewritten(full(), |object| object["spec"]["externalTrafficPolicy"] = "Cluster".into()).await;
    assert_eq!(has(&cluster, &fields), [true, false, true, true]);

    let external_name = rewritten(full(), |object| {
        object["spec"]["type"] = "ExternalName".into();
        object["spec"]["externalName"] = "example.org".into();
    })
    .await;
    assert_eq!(has(&external_name, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]), [false; 4]);
    assert_eq!(has(&external_name, &fields), [false; 4]);
}

#[tokio::test]
async fn the_first_cluster_ip_and_the_list_follow_each_other() {
    let made = rewritten(service(json!({"clusterIPs": ["10.96.0.9"]})), |_| {}).await;
    assert_eq!(made["spec"]["clusterIP"], "10.96.0.9");
    // Cleared in the older field alone, on the way to a type without addresses.
    let cleared = rewritten(single(), |object| {
        object["spec"]["type"] = "ExternalName".into();
        object["spec"]["externalName"] = "example.org".into();
        object["spec"]["clusterIP"] = "".into();
    })
    .await;
    assert_eq!(has(&cleared, &["clusterIP", "clusterIPs"]), [false; 2]);
    let kept = rewritten(dual(), |object| drop(object["spec"].as_object_mut().unwrap().remove("clusterIPs"))).await;
    assert_eq!(kept["spec"]["clusterIPs"], json!(["10.96.0.9", "fd00:96::9"]));
}

#[tokio::test]
async fn node_ports_are_kept_by_name_or_by_port() {
    let node_port = |ports: Value| service(json!({"type": "NodePort", "ports": ports}));
    let before =
        node_port(json!([{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30081}]));
    for (name, ports, expected) in [
        ("the same", json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]), json!([30080, 30081])),
        ("another port", json!([{"name": "a", "port": 90}, {"name": "b", "port": 91}]), json!([30080, 30081])),
        ("another name", json!([{"name": "x", "port": 80}, {"name": "b", "port": 81}]), json!([30080, 30081])),
        ("swapped", json!([{"name": "b", "port": 80}, {"name": "a", "port": 81}]), json!([30081, 30080])),
        ("one less", json!([{"name": "b", "port": 81}]), json!([30081])),
        (
            "given to another",
            json!([{"name": "a", "port": 80, "nodePort": 30081}, {"name": "c", "port": 80, "protocol": "UDP"}]),
            json!([30081, 30081]),
        ),
    ] {
        let after = rewritten(before.clone(), |object| object["spec"]["ports"] = ports).await;
        let numbers: Value =
            after["spec"]["ports"].as_array().unwrap().iter().map(|port| port["nodePort"].clone()).collect();
        assert_eq!(numbers, expected, "{name}");
    }
}

#[tokio::test]
async fn node_ports_of_a_load_balancer_go_where_it_is_to_have_none() {
    let without = rewritten(balancer(json!({})), |object| {
        object["spec"]["allocateLoadBalancerNodePorts"] = false.into();
        object["spec"]["ports"][0].as_object_mut().unwrap().remove("nodePort");
    })
    .await;
    assert!(without["spec"]["ports"][0].get("nodePort").is_none());
    // Those that are named stay.
    let with =
        rewritten(balancer(json!({})), |object| object["spec"]["allocateLoadBalancerNodePorts"] = false.into()).await;
    assert!(with["spec"]["ports"][0].get("nodePort").is_some());
}

#[tokio::test]
async fn a_number_that_is_asked_for_is_not_handed_out_before() {
    // Two numbers: the first one handed out would be the one that is asked for, every other time.
    let narrow = Options { node_ports: 30_000..=30_001, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = open(&dir, narrow);
    let two = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30_001}]);
    let health = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30_000});
    for write in [service(json!({"type": "NodePort", "ports": two})), balancer(health)].iter().cycle().take(16) {
        let stored = registry.apply(write.to_string().as_bytes()).await.unwrap();
        let object: Value = serde_json::from_slice(&stored.record.json).unwrap();
        let spec = &object["spec"];
        let second =
            if spec["type"] == "NodePort" { &spec["ports"][1]["nodePort"] } else { &spec["healthCheckNodePort"] };
        assert_ne!(spec["ports"][0]["nodePort"], *second, "{spec}");
        registry.delete(stored.record.key.clone(), 0).await.unwrap();
    }
}

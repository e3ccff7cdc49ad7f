use serde_json::{Value, json};

use super::*;

/// A Service over TCP port 80 of its pods, with changes to its spec.
fn service(spec: Value) -> Service {
    let mut object = json!({"metadata": {"namespace": "shop", "name": "web", "uid": "u1", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"], "clusterIP": "10.96.0.9", "ports": [{"port": 80}]}});
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    Service::read(serde_json::from_value(object).unwrap()).unwrap()
}

/// A ready pod, with changes to the whole object.
fn pod(name: &str, change: impl Fn(&mut Value)) -> Pod {
    let mut object = json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                   "conditions": [{"type": "Ready", "status": "True"}]}});
    change(&mut object);
    Pod::read(serde_json::from_value(object).unwrap())
}

fn unready(pod: &mut Value) {
    pod["status"]["conditions"][0]["status"] = "False".into();
}

fn deleted(pod: &mut Value) {
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
}

fn planned(service: &Service, pods: &[Pod], existing: &[EndpointSlice]) -> Plan {
    let pods: Vec<_> = pods.iter().map(|pod| (pod, Some("zone-a"))).collect();
    plan(Some(service), &pods, &existing.iter().collect::<Vec<_>>(), Timestamp::UNIX_EPOCH)
}

/// The slices after a plan, as the registry would hold them.
pub(super) fn carried_out(plan: Plan, existing: &[EndpointSlice]) -> Vec<EndpointSlice> {
    let mut slices: BTreeMap<String, EndpointSlice> =
        existing.iter().map(|slice| (name_of(slice), slice.clone())).collect();
    for (n, mut slice) in plan.apply.into_iter().enumerate() {
        let free = (n..).map(|n| format!("web-new{n}")).find(|name| !slices.contains_key(name)).unwrap();
        let name = slice.metadata.name.get_or_insert(free).clone();
        slices.insert(name, slice);
    }
    for name in plan.delete {
        assert!(slices.remove(&name).is_some(), "{name} does not exist");
    }
    slices.into_values().collect()
}

/// In short: `IPv4 http/TCP=8080: 10.0.0.1 ready,serving`.
fn shown(slices: &[EndpointSlice]) -> Vec<String> {
    let ports = |slice: &EndpointSlice| {
        let port = |port: &k8s_openapi::api::discovery::v1::EndpointPort| {
            let (name, protocol) = (port.name.as_deref().unwrap(), port.protocol.as_deref().unwrap());
            format!(" {name}/{protocol}={}", port.port.unwrap())
        };
        slice.ports.iter().flatten().map(port).collect::<String>()
    };
    let endpoint = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions.as_ref().unwrap();
        let words =
            [("ready", conditions.ready), ("serving", conditions.serving), ("terminating", conditions.terminating)];
        let words: Vec<&str> = words.into_iter().filter(|(_, is)| is.unwrap()).map(|(word, _)| word).collect();
        format!(" {} {}", endpoint.addresses.join("+"), words.join(","))
    };
    let line = |slice: &EndpointSlice| {
        let endpoints: Vec<String> = slice.endpoints.iter().flatten().map(endpoint).collect();
        format!("{}{}:{}", slice.address_type, ports(slice), endpoints.join(";"))
    };
    slices.iter().map(line).collect()
}

#[test]
fn a_slice_is_all_that_kubernetes_makes_of_it() {
    let service = service(json!({}));
    let plan = planned(&service, &[pod("a", |_| {})], &[]);
    assert!(plan.delete.is_empty());
    let [slice] = &plan.apply[..] else { panic!("{plan:?}") };
    assert_eq!(
        serde_json::to_value(slice).unwrap(),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "shop",
                "generateName": "web-",
                "labels": {
                    "team": "a",
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.tollgate.dev",
                },
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:00Z"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "u1",
                                     "controller": true, "blockOwnerDeletion": true}],
            },
            "addressType": "IPv4",
            "ports": [{"name": "", "protocol": "TCP", "port": 80}],
            "endpoints": [{
                "addresses": ["10.0.0.1"],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "edge-1",
                "zone": "zone-a",
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "a", "uid": "uid-a"},
            }],
        })
    );
}

#[test]
fn endpoints_follow_from_service_and_pod() {
    type Change = fn(&mut Value);
    let none: &[&str] = &[];
    let rows: Vec<(&str, Value, Change, &[&str])> = vec![
        ("ready", json!({}), |_| {}, &["IPv4 /TCP=80: 10.0.0.1 ready,serving"]),
        ("unready", json!({}), unready, &["IPv4 /TCP=80: 10.0.0.1 "]),
        ("no conditions", json!({}), |pod| pod["status"]["conditions"] = json!([]), &["IPv4 /TCP=80: 10.0.0.1 "]),
        ("terminating", json!({}), deleted, &["IPv4 /TCP=80: 10.0.0.1 serving,terminating"]),
        (
            "terminating, unready",
            json!({}),
            |pod| {
                unready(pod);
                deleted(pod);
            },
            &["IPv4 /TCP=80: 10.0.0.1 terminating"],
        ),
        ("published", json!({"publishNotReadyAddresses": true}), unready, &["IPv4 /TCP=80: 10.0.0.1 ready"]),
        (
            "published, terminating",
            json!({"publishNotReadyAddresses": true}),
            deleted,
            &["IPv4 /TCP=80: 10.0.0.1 ready,serving,terminating"],
        ),
        ("succeeded", json!({}), |pod| pod["status"]["phase"] = "Succeeded".into(), none),
        ("failed", json!({}), |pod| pod["status"]["phase"] = "Failed".into(), none),
        ("no address", json!({}), |pod| pod["status"]["podIPs"] = json!([]), none),
        ("no status", json!({}), |pod| pod["status"] = json!({}), none),
        ("no routable address", json!({}), |pod| pod["status"]["podIPs"] = json!([{"ip": "127.0.0.1"}]), none),
        (
            "IPv4 in the clothes of IPv6",
            json!({"ipFamilies": ["IPv6"]}),
            |pod| pod["status"]["podIPs"] = json!([{"ip": "::ffff:10.0.0.1"}]),
            none,
        ),
        ("podIP alone", json!({}), |pod| pod["status"] = json!({"podIP": "10.0.0.7"}), &["IPv4 /TCP=80: 10.0.0.7 "]),
        (
            "host network",
            json!({}),
            |pod| pod["spec"]["hostNetwork"] = true.into(),
            &["IPv4 /TCP=80: 10.0.0.1 ready,serving"],
        ),
        ("IPv6", json!({"ipFamilies": ["IPv6"]}), |_| {}, &["IPv6 /TCP=80: fd00::1 ready,serving"]),
        (
            "both families",
            json!({"ipFamilies": ["IPv6", "IPv4"]}),
            |_| {},
            &["IPv4 /TCP=80: 10.0.0.1 ready,serving", "IPv6 /TCP=80: fd00::1 ready,serving"],
        ),
        (
            "not the pod's family",
            json!({"ipFamilies": ["IPv6"]}),
            |pod| pod["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}]),
            none,
        ),
        (
            "numbers and names",
            json!({"ports": [{"name": "web", "port": 80, "targetPort": "http"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
            |_| {},
            &["IPv4 dns/UDP=53 web/TCP=8080: 10.0.0.1 ready,serving"],
        ),
        (
            "a name of another protocol",
            json!({"ports": [{"port": 80, "protocol": "UDP", "targetPort": "http"}]}),
            |_| {},
            &["IPv4: 10.0.0.1 ready,serving"],
        ),
        (
            "a sidecar's port",
            json!({"ports": [{"port": 80, "targetPort": "proxy"}]}),
            |pod| {
                pod["spec"]["initContainers"] = json!([{"name": "s", "restartPolicy": "Always",
                    "ports": [{"name": "proxy", "containerPort": 15001}]}]);
            },
            &["IPv4 /TCP=15001: 10.0.0.1 ready,serving"],
        ),
        (
            "headless without ports",
            json!({"clusterIP": "None", "ports": []}),
            |_| {},
            &["IPv4: 10.0.0.1 ready,serving"],
        ),
    ];
    for (name, spec, change, expected) in rows {
        let service = service(spec);
        let plan = planned(&service, &[pod("a", change)], &[]);
        assert_eq!(shown(&plan.apply), expected, "{name}");
        let slices = carried_out(plan, &[]);
        assert_eq!(planned(&service, &[pod("a", change)], &slices), Plan::default(), "{name}, again");
    }
}

#[test]
fn an_app_protocol_goes_along_if_a_slice_may_have_it() {
    for (given, expected) in [("kubernetes.io/h2c", Some("kubernetes.io/h2c")), ("a b", None)] {
        let service = service(json!({"ports": [{"port": 80, "appProtocol": given}]}));
        let plan = planned(&service, &[pod("a", |_| {})], &[]);
        assert_eq!(plan.apply[0].ports.as_ref().unwrap()[0].app_protocol.as_deref(), expected, "{given}");
    }
}

#[test]
fn a_named_port_that_differs_splits_the_slices() {
    let service = service(json!({"ports": [{"port": 80, "targetPort": "http"}]}));
    let other = |pod: &mut Value| {
        pod["spec"]["containers"][0]["ports"][0]["containerPort"] = 9090.into();
        pod["status"]["podIPs"][0]["ip"] = "10.0.0.2".into();
    };
    let plan = planned(&service, &[pod("a", |_| {}), pod("b", other)], &[]);
    assert_eq!(
        shown(&plan.apply),
        ["IPv4 /TCP=8080: 10.0.0.1 ready,serving", "IPv4 /TCP=9090: 10.0.0.2 ready,serving"]
    );
}

#[test]
fn other_ports_are_written_over_the_old_slice() {
    let before = carried_out(planned(&service(json!({})), &[pod("a", |_| {})], &[]), &[]);
    let plan = planned(&service(json!({"ports": [{"port": 81}]})), &[pod("a", |_| {})], &before);
    assert!(plan.delete.is_empty());
    assert_eq!(plan.apply[0].metadata.name, before[0].metadata.name);
    assert_eq!(shown(&plan.apply), ["IPv4 /TCP=81: 10.0.0.1 ready,serving"]);
}

#[test]
fn a_headless_service_says_so_on_its_slices() {
    let pods = [
        pod("db-0", |pod| pod["spec"]["hostname"] = "db-0".into()),
        pod("db-1", |pod| {
            pod["spec"]["hostname"] = "db-1".into();
            pod["spec"]["subdomain"] = "web".into();
        }),
    ];
    let plan = planned(&service(json!({"clusterIP": "None"})), &pods, &[]);
    assert_eq!(plan.apply[0].metadata.labels.as_ref().unwrap()[HEADLESS], "");
    let hostnames: Vec<_> =
        plan.apply[0].endpoints.iter().flatten().map(|endpoint| endpoint.hostname.as_deref()).collect();
    // Only of pods that are under the Service's domain.
    assert_eq!(hostnames, [None, Some("db-1")]);
}

#[test]
fn hints_follow_traffic_distribution() {
    for (name, distribution, zones, nodes) in [
        ("none", Value::Null, None, None),
        ("close", "PreferClose".into(), Some("zone-a"), None),
        ("zone", "PreferSameZone".into(), Some("zone-a"), None),
        ("node", "PreferSameNode".into(), Some("zone-a"), Some("edge-1")),
    ] {
        let service = service(json!({"trafficDistribution": distribution}));
        let plan = planned(&service, &[pod("a", |_| {}), pod("b", unready)], &[]);
        let endpoints = plan.apply[0].endpoints.as_ref().unwrap();
        let hints = endpoints[0].hints.clone().unwrap_or_default();
        assert_eq!(hints.for_zones.as_ref().map(|zones| zones[0].name.as_str()), zones, "{name}");
        assert_eq!(hints.for_nodes.as_ref().map(|nodes| nodes[0].name.as_str()), nodes, "{name}");
        assert_eq!(endpoints[1].hints, None, "{name}: not ready");
    }
}

#[test]
fn what_a_slice_should_not_be_is_put_right() {
    type Change = fn(&mut EndpointSlice);
    let service = service(json!({}));
    let pods = [pod("a", |_| {})];
    let right = carried_out(planned(&service, &pods, &[]), &[]);
    let rows: Vec<(&str, Change, usize, usize)> = vec![
        ("nothing", |_| {}, 0, 0),
        (
            "an annotation",
            |slice| drop(slice.metadata.annotations.as_mut().unwrap().insert("x".into(), "y".into())),
            0,
            0,
        ),
        ("a label more", |slice| drop(slice.metadata.labels.as_mut().unwrap().insert("x".into(), "y".into())), 1, 0),
        ("no owner", |slice| slice.metadata.owner_references = None, 1, 0),
        ("another owner", |slice| slice.metadata.owner_references.as_mut().unwrap()[0].uid = "u0".into(), 1, 0),
        ("no endpoints", |slice| slice.endpoints = None, 1, 0),
        ("a stranger", |slice| slice.endpoints.as_mut().unwrap().push(Endpoint::default()), 1, 0),
        ("other ports", |slice| slice.ports = None, 1, 0),
        ("another family", |slice| slice.address_type = "IPv6".into(), 1, 1),
        ("no family", |slice| slice.address_type = "FQDN".into(), 1, 1),
    ];
    for (name, change, applied, deleted) in rows {
        let mut existing = right.clone();
        change(&mut existing[0]);
        let plan = planned(&service, &pods, &existing);
        assert_eq!((plan.apply.len(), plan.delete.len()), (applied, deleted), "{name}");
        let slices = carried_out(plan, &existing);
        assert_eq!(shown(&slices), shown(&right), "{name}");
    }
}

#[test]
fn a_service_that_is_to_have_no_slices_loses_them() {
    let slices = carried_out(planned(&service(json!({})), &[pod("a", |_| {})], &[]), &[]);
    let plan = plan(None, &[], &slices.iter().collect::<Vec<_>>(), Timestamp::UNIX_EPOCH);
    assert_eq!((plan.apply.len(), plan.delete), (0, vec!["web-new0".to_owned()]));
    for spec in [json!({"selector": {}}), json!({"selector": {"a": "b"}, "type": "ExternalName"})] {
        assert_eq!(Service::read(serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()), None);
    }
}

/// Pods whose names begin with a letter: `a-0`, `a-1`, ...
fn pods(groups: &[(char, usize)]) -> Vec<Pod> {
    groups.iter().flat_map(|(letter, count)| (0..*count).map(move |n| pod(&format!("{letter}-{n}"), |_| {}))).collect()
}

/// One slice for each letter.
fn slices(service: &Service, groups: &[(char, usize)]) -> Vec<EndpointSlice> {
    let slice = |group: &(char, usize)| {
        let mut slice = planned(service, &pods(&[*group]), &[]).apply.remove(0);
        slice.metadata.name = Some(group.0.to_string());
        slice
    };
    groups.iter().map(slice).collect()
}

#[test]
fn what_is_new_goes_where_a_write_is_due_or_the_fullest_has_room() {
    let service = service(json!({}));
    type Groups<'a> = &'a [(char, usize)];
    type Row<'a> = (&'a str, Groups<'a>, Groups<'a>, &'a [&'a str], &'a [&'a str]);
    let rows: [Row<'_>; 6] = [
        ("one loses some, the other all", &[('a', 1), ('b', 9)], &[('b', 8), ('n', 1)], &["b"], &["a"]),
        ("all are gone", &[('a', 2), ('b', 9)], &[('b', 9), ('n', 1)], &["a"], &[]),
        ("the fullest", &[('a', 5), ('b', 90), ('c', 95)], &[('a', 5), ('b', 90), ('c', 95), ('n', 8)], &["b"], &[]),
        ("none for all", &[('a', 95), ('b', 90)], &[('a', 95), ('b', 90), ('n', 12)], &["a", "b"], &[]),
        (
            "some for all",
            &[('a', 95), ('b', 90), ('c', 94)],
            &[('a', 95), ('b', 90), ('c', 94), ('n', 11)],
            &["b", "c"],
            &[],
        ),
        ("no room", &[('a', 100)], &[('a', 100), ('n', 101)], &["new", "new"], &[]),
    ];
    for (name, before, after, applied, deleted) in rows {
        let existing = slices(&service, before);
        let plan = planned(&service, &pods(after), &existing);
        let mut names: Vec<&str> =
            plan.apply.iter().map(|slice| slice.metadata.name.as_deref().unwrap_or("new")).collect();
        names.sort_unstable();
        assert_eq!((&names[..], plan.delete), (applied, deleted.iter().map(ToString::to_string).collect()), "{name}");
    }
}

#[test]
fn sparse_slices_are_packed_with_writes_that_are_due_anyway() {
    let service = service(json!({}));
    let groups: Vec<(char, usize)> = ('a'..='j').map(|letter| (letter, 2)).collect();
    let mut existing = slices(&service, &groups);
    // Nothing is due: nothing is written for the sake of order.
    assert_eq!(planned(&service, &pods(&groups), &existing), Plan::default());
    let mut changed = pods(&groups);
    let mut counts = Vec::new();
    for n in 0..12 {
        let ready = changed[n].is_ready;
        changed[n].is_ready = !ready;
        let plan = planned(&service, &changed, &existing);
        assert_eq!(plan.apply.len(), 1, "{plan:?}");
        existing = carried_out(plan, &existing);
        counts.push(existing.len());
    }
    // Twice as many as it takes may stay.
    assert_eq!(counts, [9, 8, 7, 6, 5, 4, 3, 2, 2, 2, 2, 2]);
    let mut held: Vec<String> = existing
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .map(|end| pod_of(end).unwrap().to_owned())
        .collect();
    held.sort();
    assert_eq!(held, pods(&groups).iter().map(|pod| pod.name.clone()).collect::<Vec<_>>());
}

#[test]
fn slices_that_are_full_enough_are_not_packed() {
    let service = service(json!({}));
    let rows: [(&str, &[(char, usize)]); 3] = [
        ("five for 201 endpoints, which take three", &[('a', 90), ('b', 80), ('c', 20), ('d', 10), ('e', 1)]),
        ("two that would not fit into one", &[('a', 60), ('b', 60)]),
        ("six for 150, of which none fits", &[('a', 95), ('b', 11), ('c', 11), ('d', 11), ('e', 11), ('f', 11)]),
    ];
    for (name, groups) in rows {
        let existing = slices(&service, groups);
        let mut changed = pods(groups);
        changed[0].is_ready = false;
        let plan = planned(&service, &changed, &existing);
        assert_eq!((plan.apply.len(), plan.delete.len()), (1, 0), "{name}");
    }
}

//! Services in themselves.

use super::*;

const LABEL: &str =
    "must be at most 63 lower-case letters, digits or '-', and start and end with a letter or digit (DNS-1123 label)";
const SUBDOMAIN: &str = "must be at most 253 lower-case letters, digits, '-' or '.', and start and end with a letter or \
                         digit (DNS-1123 subdomain)";
const KEY: &str =
    "must be a name of at most 63 letters, digits, '-', '_' or '.', after a DNS subdomain and '/' if there is a prefix";
const VALUE: &str = "must be at most 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit";
const PORT_NAME: &str = "must be at most 15 lower-case letters, digits or single '-', with a letter in it";
const NOT_BALANCED: &str = "must be absent unless type is LoadBalancer";
const NOT_EXTERNAL_NAME: &str = "must be absent for a Service of type ExternalName";

fn annotated(spec: Value, annotations: Value) -> Value {
    merge(service(spec), json!({"metadata": {"annotations": annotations}}))
}

fn status(spec: Value, ingress: Value) -> Value {
    merge(service(spec), json!({"status": {"loadBalancer": {"ingress": ingress}}}))
}

fn external_name(spec: Value) -> Value {
    service(merge(json!({"type": "ExternalName", "externalName": "example.org"}), spec))
}

/// What the row is about, what is written where nothing was before, and what is found: field and value, and the reason.
type New<'a> = (&'a str, Value, &'a [(&'a str, &'a str)]);

async fn check_new(rows: Vec<New<'_>>) {
    let rows: Vec<(&str, Value, Vec<String>)> = rows
        .into_iter()
        .map(|(name, write, expected)| {
            let lines = expected.iter().map(|(field, reason)| format!("{field}: {reason}")).collect();
            (name, write, lines)
        })
        .collect();
    let rows = rows.iter().map(|(name, write, expected)| {
        (*name, Value::Null, write.clone(), expected.iter().map(String::as_str).collect())
    });
    check(options(), rows.collect()).await;
}

#[tokio::test]
async fn ports_are_checked() {
    let ports = |ports: Value| service(json!({"ports": ports}));
    let node_ports = |ports: Value| service(json!({"type": "NodePort", "ports": ports}));
    check_new(vec![
        ("one without a name", ports(json!([{"port": 80}])), &[]),
        (
            "one number, two protocols",
            ports(json!([{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}])),
            &[],
        ),
        (
            "one node port, two protocols",
            node_ports(json!([{"name": "a", "port": 53, "nodePort": 30053}, {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30053}])),
            &[],
        ),
        ("appProtocol", ports(json!([{"port": 80, "appProtocol": "kubernetes.io/h2c"}])), &[]),
        ("none", ports(json!([])), &[("spec.ports", "is required")]),
        ("none, headless", service(json!({"clusterIP": "None", "ports": []})), &[]),
        ("none, ExternalName", external_name(json!({"ports": []})), &[]),
        (
            "names",
            ports(json!([{"port": 80}, {"name": "B", "port": 81}, {"name": "c", "port": 82}, {"name": "c", "port": 83}])),
            &[
                ("spec.ports[0].name", "is required where there are several ports"),
                ("spec.ports[1].name: \"B\"", LABEL),
                ("spec.ports[3].name: \"c\"", "must be unique within the Service"),
            ],
        ),
        (
            "numbers and words",
            ports(json!([{"name": "a", "port": 0, "protocol": "ICMP"}, {"name": "b", "port": 65536, "targetPort": "a--b"},
                         {"name": "c", "port": 1, "targetPort": -1, "appProtocol": "a b"}, {"name": "d", "port": 2, "targetPort": "80"}])),
            &[
                ("spec.ports[0].protocol: \"ICMP\"", "must be one of TCP, UDP, SCTP"),
                ("spec.ports[0].port: 0", "must be between 1 and 65535"),
                ("spec.ports[1].port: 65536", "must be between 1 and 65535"),
                ("spec.ports[1].targetPort: \"a--b\"", PORT_NAME),
                ("spec.ports[2].targetPort: -1", "must be between 1 and 65535"),
                ("spec.ports[2].appProtocol: \"a b\"", KEY),
                ("spec.ports[3].targetPort: \"80\"", PORT_NAME),
            ],
        ),
        (
            "the same port twice",
            ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}])),
            &[("spec.ports[1]: \"TCP 80\"", "must be unique: another port has this number and protocol")],
        ),
        (
            "the same node port twice",
            node_ports(json!([{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30080}])),
            &[("spec.ports[1].nodePort: 30080", "must be unique: another port has this nodePort and protocol")],
        ),
        (
            "a node port without the type",
            ports(json!([{"port": 80, "nodePort": 30080}])),
            &[("spec.ports[0].nodePort: 30080", "must be absent for a Service of type ClusterIP")],
        ),
        (
            "a node port out of range",
            node_ports(json!([{"name": "a", "port": 80, "nodePort": 80}, {"name": "b", "port": 81, "nodePort": -1}])),
            &[
                ("spec.ports[0].nodePort: 80", "must be in the node port range 30000-32767"),
                ("spec.ports[1].nodePort: -1", "must be in the node port range 30000-32767"),
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn types_and_what_depends_on_them_are_checked() {
    check_new(vec![
        ("no spec", json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}), &[("spec", "is required")]),
        (
            "an unknown type",
            service(json!({"type": "Foo"})),
            &[("spec.type: \"Foo\"", "must be one of ClusterIP, NodePort, LoadBalancer, ExternalName")],
        ),
        ("a full name", external_name(json!({"externalName": "example.org."})), &[]),
        (
            "no external name",
            external_name(json!({"externalName": "."})),
            &[("spec.externalName", "is required for a Service of type ExternalName")],
        ),
        (
            "a wrong external name",
            external_name(json!({"externalName": "example.org.."})),
            &[("spec.externalName: \"example.org..\"", SUBDOMAIN)],
        ),
        (
            "an external name has no address",
            external_name(json!({"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"})),
            &[
                ("spec.clusterIPs: [\"10.96.0.9\"]", NOT_EXTERNAL_NAME),
                ("spec.ipFamilies: [\"IPv4\"]", NOT_EXTERNAL_NAME),
                ("spec.ipFamilyPolicy: \"SingleStack\"", NOT_EXTERNAL_NAME),
            ],
        ),
        (
            "headless with node ports",
            service(json!({"type": "NodePort", "clusterIP": "None"})),
            &[("spec.clusterIPs[0]: \"None\"", "must be an address, or absent, for a Service of type NodePort")],
        ),
        (
            "headless with a load balancer",
            service(json!({"type": "LoadBalancer", "clusterIPs": ["None"]})),
            &[("spec.clusterIPs[0]: \"None\"", "must be an address, or absent, for a Service of type LoadBalancer")],
        ),
        (
            "all of a load balancer",
            service(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "loadBalancerClass": "example.org/lb",
                           "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "fd00::/8"], "externalTrafficPolicy": "Local", "healthCheckNodePort": 30500})),
            &[],
        ),
        (
            "a load balancer's without the type",
            service(json!({"allocateLoadBalancerNodePorts": true, "loadBalancerClass": "example.org/lb",
                           "loadBalancerSourceRanges": ["10.0.0.0/8"], "healthCheckNodePort": 30500})),
            &[
                ("spec.healthCheckNodePort: 30500", "must be absent unless type is LoadBalancer and externalTrafficPolicy Local"),
                ("spec.loadBalancerSourceRanges[0]: \"10.0.0.0/8\"", NOT_BALANCED),
                ("spec.allocateLoadBalancerNodePorts: true", NOT_BALANCED),
                ("spec.loadBalancerClass: \"example.org/lb\"", NOT_BALANCED),
            ],
        ),
        (
            "words of a load balancer",
            service(json!({"type": "LoadBalancer", "loadBalancerClass": "a b", "loadBalancerSourceRanges": ["10.0.0.1"], "healthCheckNodePort": 30500})),
            &[
                ("spec.healthCheckNodePort: 30500", "must be absent unless type is LoadBalancer and externalTrafficPolicy Local"),
                ("spec.loadBalancerSourceRanges[0]: \"10.0.0.1\"", "must be a CIDR such as 203.0.113.0/24"),
                ("spec.loadBalancerClass: \"a b\"", KEY),
            ],
        ),
        (
            "a health check's port out of range",
            service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 70000})),
            &[("spec.healthCheckNodePort: 70000", "must be in the node port range 30000-32767")],
        ),
        (
            "a health check on a node port",
            service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30500, "ports": [{"port": 80, "nodePort": 30500}]})),
            &[("spec.healthCheckNodePort: 30500", "must be another number than spec.ports[0].nodePort")],
        ),
    ])
    .await;
}

#[tokio::test]
async fn affinity_policies_and_selectors_are_checked() {
    let seconds = |seconds: i32| {
        service(
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}),
        )
    };
    let range = "must be between 1 and 86400";
    let field = |seconds: &str| format!("spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds}");
    let (none, more) = (field("0"), field("86401"));
    check_new(vec![
        ("the shortest affinity", seconds(1), &[]),
        ("the longest affinity", seconds(86_400), &[]),
        ("no affinity", seconds(0), &[(&none, range)]),
        ("a longer affinity", seconds(86_401), &[(&more, range)]),
        (
            "an unknown affinity",
            service(json!({"sessionAffinity": "Cookie"})),
            &[("spec.sessionAffinity: \"Cookie\"", "must be one of None, ClientIP")],
        ),
        (
            "policies",
            service(json!({"internalTrafficPolicy": "Near", "trafficDistribution": "Near"})),
            &[
                ("spec.internalTrafficPolicy: \"Near\"", "must be one of Cluster, Local"),
                ("spec.trafficDistribution: \"Near\"", "must be one of PreferClose, PreferSameZone, PreferSameNode"),
            ],
        ),
        ("a policy for outside", service(json!({"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"})), &[]),
        (
            "an unknown policy for outside",
            service(json!({"type": "NodePort", "externalTrafficPolicy": "Near"})),
            &[("spec.externalTrafficPolicy: \"Near\"", "must be one of Cluster, Local")],
        ),
        (
            "a policy for outside without one",
            service(json!({"externalTrafficPolicy": "Local"})),
            &[("spec.externalTrafficPolicy: \"Local\"", "must be absent: nothing of the Service can be reached from outside")],
        ),
        (
            "a selector",
            service(json!({"selector": {"a b": "c", "d": "e f"}})),
            &[("spec.selector: \"a b\"", KEY), ("spec.selector[d]: \"e f\"", VALUE)],
        ),
        (
            "topology annotations that agree",
            annotated(json!({}), json!({"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "Auto"})),
            &[],
        ),
        (
            "topology annotations that do not",
            annotated(json!({}), json!({"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "Disabled"})),
            &[("metadata.annotations[service.kubernetes.io/topology-mode]: \"Auto\"",
               "must be the same as annotation service.kubernetes.io/topology-aware-hints, \"Disabled\", where both are given")],
        ),
        (
            "source ranges in an annotation",
            annotated(json!({"type": "LoadBalancer"}), json!({"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8, x"})),
            &[("metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: \"x\"",
               "must be CIDRs such as 203.0.113.0/24, with commas in between")],
        ),
        (
            "source ranges in an annotation without the type",
            annotated(json!({}), json!({"service.beta.kubernetes.io/load-balancer-source-ranges": ""})),
            &[("metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: \"\"", NOT_BALANCED)],
        ),
    ])
    .await;
}

#[tokio::test]
async fn addresses_are_checked() {
    let mapped = "must not be an IPv4 address written as IPv6; write it as IPv4";
    check_new(vec![
        (
            "external IPs",
            service(json!({"externalIPs": ["192.0.2.1", "127.0.0.1", "x", "::ffff:192.0.2.1", "fe80::1", "198.51.100.1"]})),
            &[
                ("spec.externalIPs[1]: \"127.0.0.1\"", "must not be a loopback address"),
                ("spec.externalIPs[2]: \"x\"", "must be an IP address"),
                ("spec.externalIPs[3]: \"::ffff:192.0.2.1\"", mapped),
                ("spec.externalIPs[4]: \"fe80::1\"", "must not be a link-local address"),
                ("spec.externalIPs[1]: \"127.0.0.1\"", "is not allowed: must be within the control plane's --allow-external-ips 192.0.2.0/24"),
                ("spec.externalIPs[4]: \"fe80::1\"", "is not allowed: must be within the control plane's --allow-external-ips 192.0.2.0/24"),
                ("spec.externalIPs[5]: \"198.51.100.1\"", "is not allowed: must be within the control plane's --allow-external-ips 192.0.2.0/24"),
            ],
        ),
        ("no ClusterIP", service(json!({"clusterIP": "10.96"})), &[("spec.clusterIPs[0]: \"10.96\"", "must be an IP address; or \"None\", or absent")]),
        (
            "a ClusterIP in the clothes of the other family",
            service(json!({"clusterIP": "::ffff:10.96.0.9"})),
            &[("spec.clusterIPs[0]: \"::ffff:10.96.0.9\"",
               "must not be an IPv4 address written as IPv6; write it as IPv4; or \"None\", or absent")],
        ),
        (
            "ClusterIPs that do not agree",
            service(json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.2", "10.96.0.3", "None"]})),
            &[
                ("spec.clusterIPs[0]: \"10.96.0.2\"", "must be the same as spec.clusterIP, 10.96.0.1"),
                ("spec.clusterIPs[1]: \"10.96.0.3\"", "must be of another family than the first"),
                ("spec.clusterIPs[2]: \"None\"", "must stand alone"),
                ("spec.clusterIPs: [\"10.96.0.2\",\"10.96.0.3\",\"None\"]", "must be at most one of each family"),
            ],
        ),
        (
            "ClusterIPs out of range",
            service(json!({"clusterIPs": ["10.97.0.1", "fd00:97::1"], "ipFamilyPolicy": "RequireDualStack"})),
            &[
                ("spec.clusterIPs[0]: \"10.97.0.1\"", "must be an address for Services in 10.96.0.0/16"),
                ("spec.clusterIPs[1]: \"fd00:97::1\"", "must be an address for Services in fd00:96::/112"),
            ],
        ),
        ("the broadcast address", service(json!({"clusterIP": "10.96.255.255"})),
         &[("spec.clusterIPs[0]: \"10.96.255.255\"", "must be an address for Services in 10.96.0.0/16")]),
        (
            "families",
            service(json!({"clusterIP": "10.96.0.1", "ipFamilies": ["IPv6", "IPv6", "v4"], "ipFamilyPolicy": "Both"})),
            &[
                ("spec.ipFamilyPolicy: \"Both\"", "must be one of SingleStack, PreferDualStack, RequireDualStack"),
                ("spec.ipFamilies[1]: \"IPv6\"", "must be unique"),
                ("spec.ipFamilies[2]: \"v4\"", "must be IPv4 or IPv6"),
                ("spec.clusterIPs[0]: \"10.96.0.1\"", "must be IPv6, as spec.ipFamilies[0] says"),
            ],
        ),
        (
            "two of each without a policy",
            service(json!({"clusterIPs": ["10.96.0.9", "fd00:96::9"], "ipFamilies": ["IPv4", "IPv6"]})),
            &[
                ("spec.ipFamilyPolicy: \"SingleStack\"", "must be PreferDualStack or RequireDualStack where spec.clusterIPs has two entries"),
                ("spec.ipFamilyPolicy: \"SingleStack\"", "must be PreferDualStack or RequireDualStack where spec.ipFamilies has two entries"),
            ],
        ),
        (
            "a load balancer's addresses",
            status(
                json!({"type": "LoadBalancer"}),
                json!([{"ip": "192.0.2.1", "ipMode": "Proxy"}, {"hostname": "a.example.org"}, {"ip": "x", "ipMode": "Half"},
                       {"hostname": "10.0.0.1", "ipMode": "VIP"}, {"hostname": "A"}]),
            ),
            &[
                ("status.loadBalancer.ingress[2].ip: \"x\"", "must be an IP address"),
                ("status.loadBalancer.ingress[2].ipMode: \"Half\"", "must be one of VIP, Proxy"),
                ("status.loadBalancer.ingress[3].ipMode: \"VIP\"", "must be absent where ip is"),
                ("status.loadBalancer.ingress[3].hostname: \"10.0.0.1\"", "must be a DNS name, not an IP address"),
                ("status.loadBalancer.ingress[4].hostname: \"A\"", SUBDOMAIN),
            ],
        ),
        (
            "a load balancer's address without the type",
            status(json!({}), json!([{"ip": "192.0.2.1"}])),
            &[("status.loadBalancer.ingress", NOT_BALANCED)],
        ),
        (
            "all at once",
            merge(
                status(json!({"ports": [{"port": 0}], "selector": {"a b": "c"}, "ipFamilies": ["IPv4", "IPv6"]}), json!([{"ip": "192.0.2.1"}])),
                json!({"metadata": {"name": "A", "labels": {"a": "b c"}}}),
            ),
            &[
                ("metadata.name: \"A\"", LABEL),
                ("metadata.labels[a]: \"b c\"", VALUE),
                ("spec.ports[0].port: 0", "must be between 1 and 65535"),
                ("status.loadBalancer.ingress", NOT_BALANCED),
                ("spec.selector: \"a b\"", KEY),
                ("spec.ipFamilyPolicy: \"SingleStack\"", "must be PreferDualStack or RequireDualStack where spec.ipFamilies has two entries"),
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn one_range_has_no_room_for_the_other_family() {
    let single = Options { service_cidrs: "10.96.0.0/16".parse().unwrap(), ..options() };
    let no_family = "must be a family of the service CIDRs 10.96.0.0/16";
    let family = format!("spec.ipFamilies[0]: \"IPv6\": {no_family}");
    let address = "spec.clusterIPs[0]: \"fd00:96::9\": must be of a family of the service CIDRs 10.96.0.0/16";
    let policy = "spec.ipFamilyPolicy: \"RequireDualStack\": must be SingleStack or PreferDualStack: the service CIDR 10.96.0.0/16 has one family";
    let rows = vec![
        ("IPv6", Value::Null, service(json!({"ipFamilies": ["IPv6"]})), vec![family.as_str()]),
        ("an IPv6 address", Value::Null, service(json!({"clusterIP": "fd00:96::9"})), vec![address]),
        ("both", Value::Null, service(json!({"ipFamilyPolicy": "RequireDualStack"})), vec![policy]),
        ("both if possible", Value::Null, service(json!({"ipFamilyPolicy": "PreferDualStack"})), vec![]),
        (
            "headless, with endpoints by hand",
            Value::Null,
            service(json!({"clusterIP": "None", "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"})),
            vec![],
        ),
    ];
    check(single, rows).await;
}

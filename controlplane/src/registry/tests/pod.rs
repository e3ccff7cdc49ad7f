use super::*;

fn pod(spec: Value, status: Value) -> Value {
    let base = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                      "spec": {"containers": [{"name": "c"}]}, "status": {}});
    merge(base, json!({"spec": spec, "status": status}))
}

fn ports(ports: Value) -> Value {
    pod(json!({"containers": [{"name": "c", "ports": ports}]}), json!({}))
}

const LABEL: &str =
    "must be at most 63 lower-case letters, digits or '-', and start and end with a letter or digit (DNS-1123 label)";

#[tokio::test]
async fn pods_are_checked() {
    let port_name = "must be at most 15 lower-case letters, digits or single '-', with a letter in it";
    let names = ["spec.hostname: \"A\"", "spec.subdomain: \"b.c\"", "spec.containers[0].name: \"C\""]
        .map(|field| format!("{field}: {LABEL}"));
    let port_names = ["a--b", "1"]
        .map(|name| format!("spec.containers[0].ports[{}].name: {name:?}: {port_name}", u8::from(name == "1")));
    check(
        options(),
        vec![
            (
                "good",
                Value::Null,
                pod(
                    json!({"nodeName": "edge-1", "hostname": "db-0", "subdomain": "db", "initContainers": [{"name": "i"}],
                           "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80, "hostPort": 8080}]},
                                          {"name": "d", "ports": [{"name": "http", "containerPort": 81}]}]}),
                    json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                           "conditions": [{"type": "Ready", "status": "Unknown"}]}),
                ),
                vec![],
            ),
            ("no spec", Value::Null, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}), vec!["spec: is required"]),
            (
                "names",
                Value::Null,
                pod(json!({"hostname": "A", "subdomain": "b.c", "containers": [{"name": "C"}]}), json!({})),
                names.iter().map(String::as_str).collect(),
            ),
            (
                "node",
                Value::Null,
                pod(json!({"nodeName": "a b"}), json!({})),
                vec!["spec.nodeName: \"a b\": must be at most 253 lower-case letters, digits, '-' or '.', and start and end with a letter or digit (DNS-1123 subdomain)"],
            ),
            (
                "containers",
                Value::Null,
                pod(json!({"initContainers": [{"name": "c"}], "containers": [{"name": ""}, {"name": "c"}]}), json!({})),
                vec![
                    "spec.containers[0].name: is required",
                    "spec.containers[1].name: \"c\": must be unique within the Pod",
                ],
            ),
            (
                "port names",
                Value::Null,
                ports(json!([{"name": "a--b", "containerPort": 1}, {"name": "1", "containerPort": 2}])),
                port_names.iter().map(String::as_str).collect(),
            ),
            (
                "ports",
                Value::Null,
                ports(json!([{"name": "a", "containerPort": 0}, {"name": "a", "containerPort": 65536, "hostPort": -1, "protocol": "tcp"}])),
                vec![
                    "spec.containers[0].ports[0].containerPort: 0: must be between 1 and 65535",
                    "spec.containers[0].ports[1].name: \"a\": must be unique within the container",
                    "spec.containers[0].ports[1].containerPort: 65536: must be between 1 and 65535",
                    "spec.containers[0].ports[1].hostPort: -1: must be between 1 and 65535",
                    "spec.containers[0].ports[1].protocol: \"tcp\": must be one of TCP, UDP, SCTP",
                ],
            ),
            (
                "host network",
                Value::Null,
                pod(json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 81}]}]}), json!({})),
                vec!["spec.containers[0].ports[0].hostPort: 81: must be the containerPort, 80, where hostNetwork is true"],
            ),
            (
                "status",
                Value::Null,
                pod(json!({}), json!({"phase": "Ready", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}, {"ip": "x"}],
                                      "conditions": [{"type": "Ready", "status": "true"}]})),
                vec![
                    "status.phase: \"Ready\": must be one of Pending, Running, Succeeded, Failed, Unknown",
                    "status.podIPs[0].ip: \"10.0.0.1\": must be the same as status.podIP, 10.0.0.9",
                    "status.podIPs[1].ip: \"10.0.0.2\": must be of another family than the first",
                    "status.podIPs[2].ip: \"x\": must be an IP address",
                    "status.conditions[0].status: \"true\": must be one of True, False, Unknown",
                ],
            ),
            (
                "an address in the clothes of the other family",
                Value::Null,
                pod(json!({}), json!({"podIP": "::ffff:10.0.0.1"})),
                vec!["status.podIPs[0].ip: \"::ffff:10.0.0.1\": must not be an IPv4 address written as IPv6; write it as IPv4"],
            ),
            ("a node is found", pod(json!({}), json!({})), pod(json!({"nodeName": "a"}), json!({})), vec![]),
            ("the node stays unmentioned", pod(json!({"nodeName": "a"}), json!({})), pod(json!({}), json!({})), vec![]),
            (
                "another node",
                pod(json!({"nodeName": "a"}), json!({})),
                pod(json!({"nodeName": "b", "hostname": "B"}), json!({})),
                vec![
                    &names[0].replace("\"A\"", "\"B\""),
                    "spec.nodeName: \"b\": must stay \"a\": a pod does not move, delete the Pod first",
                ],
            ),
        ],
    )
    .await;
}

use super::*;

fn node(changes: Value) -> Value {
    merge(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}), changes)
}

fn spec(spec: Value) -> Value {
    node(json!({"spec": spec}))
}

fn taint(change: Value) -> Value {
    merge(json!({"key": "example.org/gpu", "value": "a", "effect": "NoSchedule"}), change)
}

#[tokio::test]
async fn nodes_are_checked() {
    let addresses = json!([
        {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "N1"},
        {"type": "InternalIP", "address": "n1"}, {"type": "ExternalIP", "address": "0.0.0.0"}, {"type": "Foo", "address": ""},
        {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "ExternalIP", "address": "::ffff:10.0.0.1"},
        {"type": "InternalDNS", "address": "a_b"},
    ]);
    let dual = json!({"podCIDRs": ["10.1.0.0/24", "fd00:1::/64"], "providerID": "x://1", "taints": [taint(json!({}))]});
    check(
        options(),
        vec![
            ("good", Value::Null, spec(dual.clone()), vec![]),
            (
                "addresses",
                Value::Null,
                node(json!({"status": {"addresses": addresses}})),
                vec![
                    "status.addresses[2].address: \"n1\": must be an IP address",
                    "status.addresses[3].address: \"0.0.0.0\": must be the address of a host",
                    "status.addresses[4].type: \"Foo\": must be one of InternalIP, ExternalIP, Hostname, InternalDNS, ExternalDNS",
                    "status.addresses[5]: \"InternalIP 10.0.0.1\": must be unique",
                    "status.addresses[6].address: \"::ffff:10.0.0.1\": must not be an IPv4 address written as IPv6; write it as IPv4",
                    "status.addresses[7].address: \"a_b\": must be at most 253 lower-case letters, digits, '-' or '.', and start and end with a letter or digit (DNS-1123 subdomain)",
                ],
            ),
            (
                "pod CIDRs",
                Value::Null,
                spec(json!({"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.1.0.0/24", "10.1.1.0/24", "x"]})),
                vec![
                    "spec.podCIDRs[0]: \"10.1.0.0/24\": must be the same as spec.podCIDR, 10.9.0.0/24",
                    "spec.podCIDRs[1]: \"10.1.1.0/24\": must be of another family than the first",
                    "spec.podCIDRs[2]: \"x\": must be a CIDR such as 10.244.1.0/24",
                ],
            ),
            (
                "taints",
                Value::Null,
                spec(json!({"taints": [taint(json!({"key": "a b", "value": "c d", "effect": "No"})), taint(json!({})),
                                       taint(json!({"value": "b"})), taint(json!({"effect": "NoExecute"}))]})),
                vec![
                    "spec.taints[0].key: \"a b\": must be a name of at most 63 letters, digits, '-', '_' or '.', after a DNS subdomain and '/' if there is a prefix",
                    "spec.taints[0].value: \"c d\": must be at most 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit",
                    "spec.taints[0].effect: \"No\": must be one of NoSchedule, PreferNoSchedule, NoExecute",
                    "spec.taints[2]: \"example.org/gpu:NoSchedule\": must be unique by key and effect",
                ],
            ),
            ("pod CIDRs are set later", node(json!({})), spec(dual.clone()), vec![]),
            ("what is not mentioned stays", spec(dual.clone()), node(json!({})), vec![]),
            ("the same, in full", spec(dual.clone()), spec(dual.clone()), vec![]),
            (
                "what is set stays",
                spec(dual),
                spec(json!({"podCIDRs": ["10.2.0.0/24"], "providerID": "x://2"})),
                vec![
                    "spec.podCIDR: \"10.2.0.0/24\": must stay \"10.1.0.0/24\": it can't be changed, delete the Node first",
                    "spec.podCIDRs: [\"10.2.0.0/24\"]: must stay [\"10.1.0.0/24\",\"fd00:1::/64\"]: it can't be changed, delete the Node first",
                    "spec.providerID: \"x://2\": must stay \"x://1\": it can't be changed, delete the Node first",
                ],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_node_keeps_its_pod_cidrs_when_it_is_written_without() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = open(&dir, options());
    let before = spec(json!({"podCIDRs": ["10.1.0.0/24"]}));
    let revision = registry.apply(before.to_string().as_bytes()).await.unwrap().record.revision;
    let applied = registry.apply(node(json!({})).to_string().as_bytes()).await.unwrap();
    assert_eq!(applied.record.revision, revision);
}

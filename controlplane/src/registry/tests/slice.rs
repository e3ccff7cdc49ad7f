use super::*;

fn slice(changes: Value) -> Value {
    let base = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}],
    });
    merge(base, changes)
}

fn endpoint(changes: Value) -> Value {
    slice(json!({"endpoints": [merge(json!({"addresses": ["10.0.0.1"]}), changes)]}))
}

#[tokio::test]
async fn endpoint_slices_are_checked() {
    let many = |count: usize| -> Vec<Value> {
        (0..count).map(|n| json!({"addresses": [format!("10.0.{}.{}", n / 250, n % 250 + 1)]})).collect()
    };
    let zones = |count: usize| -> Vec<Value> { (0..count).map(|n| json!({"name": format!("z{n}")})).collect() };
    let labels = |count: usize| -> Value { Value::Object((0..count).map(|n| (format!("l{n}"), json!("v"))).collect()) };
    let key = "must be a name of at most 63 letters, digits, '-', '_' or '.', after a DNS subdomain and '/' if there is a prefix";
    let value = "must be at most 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit";
    let subdomain = "must be at most 253 lower-case letters, digits, '-' or '.', and start and end with a letter or digit (DNS-1123 subdomain)";
    let label = "must be at most 63 lower-case letters, digits or '-', and start and end with a letter or digit (DNS-1123 label)";
    let lines = |lines: &[(&str, &str)]| -> Vec<String> {
        lines.iter().map(|(field, reason)| format!("{field}: {reason}")).collect()
    };
    let names = lines(&[
        ("endpoints[0].nodeName: \"A\"", subdomain),
        ("endpoints[0].hostname: \"a.b\"", label),
        ("endpoints[0].deprecatedTopology: \"a b\"", key),
        ("endpoints[0].deprecatedTopology[c]: \"d e\"", value),
        ("endpoints[0].hints.forZones[0].name: \"a b\"", value),
        ("endpoints[0].hints.forNodes[0].name: \"A\"", subdomain),
    ]);
    let ports = lines(&[("ports[0].name: \"A\"", label), ("ports[0].appProtocol: \"a b\"", key)]);
    check(
        options(),
        vec![
            (
                "good",
                Value::Null,
                endpoint(json!({"nodeName": "edge-1", "hostname": "db-0", "zone": "z", "hints": {"forZones": zones(8), "forNodes": zones(8)},
                                "deprecatedTopology": labels(16)})),
                vec![],
            ),
            ("every port", Value::Null, slice(json!({"ports": [{}]})), vec![]),
            (
                "names",
                Value::Null,
                slice(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.example.org", "b.example.org."]}]})),
                vec![],
            ),
            (
                "no full names",
                Value::Null,
                slice(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["localhost"]}]})),
                vec!["endpoints[0].addresses[0]: \"localhost\": must be a full domain name: at least two labels of at most 63 characters each"],
            ),
            ("address type", Value::Null, slice(json!({"addressType": "IP"})), vec!["addressType: \"IP\": must be one of IPv4, IPv6, FQDN"]),
            (
                "IPv4 addresses",
                Value::Null,
                slice(json!({"endpoints": [{"addresses": []}, {"addresses": ["fd00::1", "x", "127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0"]}]})),
                vec![
                    "endpoints[0].addresses: is required",
                    "endpoints[1].addresses[0]: \"fd00::1\": must be an IPv4 address, as addressType says",
                    "endpoints[1].addresses[1]: \"x\": must be an IPv4 address, as addressType says",
                    "endpoints[1].addresses[2]: \"127.0.0.1\": must not be a loopback address",
                    "endpoints[1].addresses[3]: \"169.254.1.1\": must not be a link-local address",
                    "endpoints[1].addresses[4]: \"224.0.0.1\": must not be a multicast address",
                    "endpoints[1].addresses[5]: \"0.0.0.0\": must not be the unspecified address",
                ],
            ),
            (
                "IPv6 addresses",
                Value::Null,
                slice(json!({"addressType": "IPv6", "endpoints": [{"addresses": ["10.0.0.1", "::ffff:10.0.0.1", "::1", "fe80::1", "ff02::1", "::"]}]})),
                vec![
                    "endpoints[0].addresses[0]: \"10.0.0.1\": must be an IPv6 address, as addressType says",
                    "endpoints[0].addresses[1]: \"::ffff:10.0.0.1\": must be an IPv6 address, as addressType says",
                    "endpoints[0].addresses[2]: \"::1\": must not be a loopback address",
                    "endpoints[0].addresses[3]: \"fe80::1\": must not be a link-local address",
                    "endpoints[0].addresses[4]: \"ff02::1\": must not be a multicast address",
                    "endpoints[0].addresses[5]: \"::\": must not be the unspecified address",
                ],
            ),
            (
                "too many addresses",
                Value::Null,
                slice(json!({"endpoints": [{"addresses": vec!["10.0.0.1"; 101]}]})),
                vec!["endpoints[0].addresses: 101: must be at most 100"],
            ),
            ("many endpoints", Value::Null, slice(json!({"endpoints": many(1000)})), vec![]),
            ("too many endpoints", Value::Null, slice(json!({"endpoints": many(1001)})), vec!["endpoints: 1001: must be at most 1000"]),
            (
                "too many ports",
                Value::Null,
                slice(json!({"ports": vec![json!({"port": 0}); 20_001]})),
                vec!["ports: 20001: must be at most 20000"],
            ),
            (
                "words of endpoints",
                Value::Null,
                endpoint(json!({"nodeName": "A", "hostname": "a.b", "deprecatedTopology": {"a b": "c", "c": "d e"},
                                "hints": {"forZones": [{"name": "a b"}], "forNodes": [{"name": "A"}]}})),
                names.iter().map(String::as_str).collect(),
            ),
            (
                "hints",
                Value::Null,
                endpoint(json!({"deprecatedTopology": labels(17),
                                "hints": {"forZones": [{"name": "a"}, {"name": "a"}], "forNodes": zones(9)}})),
                vec![
                    "endpoints[0].deprecatedTopology: 17: must be at most 16",
                    "endpoints[0].hints.forZones[1].name: \"a\": must be unique",
                    "endpoints[0].hints.forNodes: 9: must be at most 8",
                ],
            ),
            (
                "ports",
                Value::Null,
                slice(json!({"ports": [{"port": 0}, {"port": 1, "protocol": "tcp"}, {"name": "a", "port": 65536}]})),
                vec![
                    "ports[0].port: 0: must be between 1 and 65535",
                    "ports[1].name: \"\": must be unique within the slice",
                    "ports[1].protocol: \"tcp\": must be one of TCP, UDP, SCTP",
                    "ports[2].port: 65536: must be between 1 and 65535",
                ],
            ),
            (
                "words of ports",
                Value::Null,
                slice(json!({"ports": [{"name": "A", "port": 1, "appProtocol": "a b"}]})),
                ports.iter().map(String::as_str).collect(),
            ),
            (
                "another address type",
                slice(json!({})),
                slice(json!({"addressType": "IPv6", "endpoints": [{"addresses": ["::1"]}]})),
                vec![
                    "endpoints[0].addresses[0]: \"::1\": must not be a loopback address",
                    "addressType: \"IPv6\": must stay \"IPv4\": it can't be changed, delete the slice first",
                ],
            ),
        ],
    )
    .await;
}

use super::*;

fn parse(manifest: Value) -> Result<Manifest, Invalid> {
    Manifest::parse(manifest.to_string().as_bytes())
}

/// The findings about a manifest, a line each.
fn findings(manifest: Value) -> Vec<String> {
    parse(manifest).err().map(|invalid| invalid.findings.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})
}

fn slice(fields: Value) -> Value {
    let mut slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}],
    });
    slice.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    slice
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let object =
        parse(service(json!({"sessionAffinity": "ClientIP", "type": "LoadBalancer", "ports": [{"port": 80}]})));
    assert_eq!(
        Value::Object(object.unwrap().object)["spec"],
        json!({
            "type": "LoadBalancer",
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Cluster",
            "allocateLoadBalancerNodePorts": true,
        })
    );
    let object = parse(service(json!({"ports": [{"port": 80, "targetPort": "http", "protocol": "UDP"}]}))).unwrap();
    assert_eq!(
        Value::Object(object.object)["spec"],
        json!({
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ports": [{"port": 80, "protocol": "UDP", "targetPort": "http"}],
            "internalTrafficPolicy": "Cluster",
        })
    );
    let object = parse(slice(json!({"endpoints": null}))).unwrap();
    assert_eq!(object.key, Key::endpoint_slice("default", "web-1"));
    assert_eq!(object.object["endpoints"], json!([]));
    assert_eq!(object.object["ports"], json!([{"port": 80, "name": "", "protocol": "TCP"}]));
    let object = parse(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).unwrap();
    assert_eq!(object.object["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "shop"}));
    assert_eq!(object.object["status"], json!({"phase": "Active"}));
}

#[test]
fn unknown_fields_stay_and_nulls_go() {
    let mut manifest =
        service(json!({"ports": [{"port": 80, "new": {"a": null}}], "selector": null, "newer": [1, null]}));
    manifest["metadata"]["creationTimestamp"] = Value::Null;
    let object = Value::Object(parse(manifest).unwrap().object);
    assert_eq!(object["metadata"], json!({"name": "web", "namespace": "default"}));
    assert_eq!(object["spec"]["ports"][0]["new"], json!({}));
    assert_eq!(object["spec"]["newer"], json!([1, null]));
    assert!(object["spec"].get("selector").is_none());
}

#[test]
fn what_is_no_object_is_named() {
    for (manifest, expected) in [
        ("{", "the manifest is invalid: (root): is not JSON: EOF while parsing an object at line 1 column 1"),
        ("[]", "the manifest is invalid: (root): []: must be an object"),
        ("{}", "the manifest is invalid: apiVersion: is required"),
        (r#"{"apiVersion":"v1"}"#, "the manifest is invalid: kind: is required"),
        (r#"{"apiVersion":"v1","kind":"Service"}"#, "the service is invalid: metadata: is required"),
        (r#"{"apiVersion":"v1","kind":"Service","metadata":{}}"#, "the service is invalid: metadata.name: is required"),
        (
            r#"{"apiVersion":"v1","kind":"EndpointSlice","metadata":{"name":"a"}}"#,
            "endpointslice a is invalid: apiVersion: \"v1\": must be \"discovery.k8s.io/v1\" for kind EndpointSlice",
        ),
        (
            r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"}}"#,
            "deployment a is invalid: kind: \"Deployment\": is not supported here; supported are Service, EndpointSlice, Node, Namespace, Pod",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","namespace":"b"}}"#,
            "node a is invalid: metadata.namespace: \"b\": must be absent: nodes lie in no namespace",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"generateName":"a-"}}"#,
            "the service is invalid: metadata.name: is required; generateName is not supported",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":"80"}]}}"#,
            "service default/a is invalid: spec.ports[0].port: invalid type: string \"80\", expected i32",
        ),
    ] {
        assert_eq!(Manifest::parse(manifest.as_bytes()).unwrap_err().to_string(), expected, "{manifest}");
    }
}

#[test]
fn services_are_checked() {
    let port = json!([{"port": 80}]);
    for (name, spec, expected) in [
        ("good", json!({"ports": port}), vec![]),
        ("headless without ports", json!({"clusterIP": "None"}), vec![]),
        ("external name", json!({"type": "ExternalName", "externalName": "example.org."}), vec![]),
        (
            "same number, other protocol",
            json!({"ports": [{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}]}),
            vec![],
        ),
        ("no ports", json!({}), vec!["spec.ports: is required"]),
        (
            "no external name",
            json!({"type": "ExternalName"}),
            vec!["spec.externalName: is required for a Service of type ExternalName"],
        ),
        (
            "type",
            json!({"type": "Foo", "ports": port}),
            vec!["spec.type: \"Foo\": must be one of ClusterIP, NodePort, LoadBalancer, ExternalName"],
        ),
        (
            "several at once",
            json!({"ports": [{"port": 0, "protocol": "ICMP"}, {"name": "B", "port": 65536, "targetPort": "a--b"}]}),
            vec![
                "spec.ports[0].name: is required where there are several ports",
                "spec.ports[0].protocol: \"ICMP\": must be one of TCP, UDP, SCTP",
                "spec.ports[0].port: 0: must be between 1 and 65535",
                "spec.ports[1].name: \"B\": must be at most 63 lower-case letters, digits or '-', and start and end with a letter or digit (DNS-1123 label)",
                "spec.ports[1].port: 65536: must be between 1 and 65535",
                "spec.ports[1].targetPort: \"a--b\": must be at most 15 lower-case letters, digits or single '-', with a letter in it",
            ],
        ),
        (
            "twice",
            json!({"ports": [{"name": "a", "port": 80}, {"name": "a", "port": 80}]}),
            vec![
                "spec.ports[1].name: \"a\": must be unique within the Service",
                "spec.ports[1]: \"TCP 80\": must be unique: another port has this number and protocol",
            ],
        ),
        (
            "node port without the type",
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            vec!["spec.ports[0].nodePort: 30080: must be absent for a Service of type ClusterIP"],
        ),
        (
            "affinity",
            json!({"ports": port, "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            vec!["spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0: must be between 1 and 86400"],
        ),
        (
            "policies",
            json!({"ports": port, "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Near", "trafficDistribution": "Near"}),
            vec![
                "spec.internalTrafficPolicy: \"Near\": must be one of Cluster, Local",
                "spec.externalTrafficPolicy: \"Local\": must be absent: nothing of the Service can be reached from outside",
                "spec.trafficDistribution: \"Near\": must be one of PreferClose, PreferSameZone, PreferSameNode",
            ],
        ),
        (
            "addresses",
            json!({"ports": port, "externalIPs": ["127.0.0.1", "x"], "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            vec![
                "spec.externalIPs[0]: \"127.0.0.1\": must not be a loopback address",
                "spec.externalIPs[1]: \"x\": must be an IP address",
                "spec.loadBalancerSourceRanges[0]: \"10.0.0.0/8\": must be absent unless type is LoadBalancer",
            ],
        ),
        (
            "cluster IPs",
            json!({"ports": port, "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.2", "10.96.0.3"], "ipFamilyPolicy": "SingleStack"}),
            vec![
                "spec.clusterIPs[0]: \"10.96.0.2\": must be the same as spec.clusterIP, 10.96.0.1",
                "spec.clusterIPs[1]: \"10.96.0.3\": must be of another family than the first",
                "spec.clusterIPs: [\"10.96.0.2\",\"10.96.0.3\"]: must have one entry only where ipFamilyPolicy is SingleStack",
            ],
        ),
        (
            "cluster IP",
            json!({"ports": port, "clusterIP": "10.96"}),
            vec!["spec.clusterIP: \"10.96\": must be an IP address, \"None\", or absent"],
        ),
        (
            "families",
            json!({"ports": port, "clusterIP": "10.96.0.1", "ipFamilies": ["IPv6", "IPv6", "v4"], "ipFamilyPolicy": "Both"}),
            vec![
                "spec.ipFamilyPolicy: \"Both\": must be one of SingleStack, PreferDualStack, RequireDualStack",
                "spec.ipFamilies[1]: \"IPv6\": must be unique",
                "spec.ipFamilies[2]: \"v4\": must be IPv4 or IPv6",
                "spec.clusterIP: \"10.96.0.1\": must be IPv6, as spec.ipFamilies[0] says",
            ],
        ),
    ] {
        assert_eq!(findings(service(spec)), expected, "{name}");
    }
}

#[test]
fn endpoint_slices_are_checked() {
    for (name, fields, expected) in [
        ("good", json!({}), vec![]),
        ("every port", json!({"ports": [{}]}), vec![]),
        ("names", json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.example.org"]}]}), vec![]),
        ("address type", json!({"addressType": "IP"}), vec!["addressType: \"IP\": must be IPv4, IPv6 or FQDN"]),
        (
            "addresses",
            json!({"endpoints": [{"addresses": []}, {"addresses": ["fd00::1", "127.0.0.1", "x"]}]}),
            vec![
                "endpoints[0].addresses: is required",
                "endpoints[1].addresses[0]: \"fd00::1\": must be an IPv4 address, as addressType says",
                "endpoints[1].addresses[1]: \"127.0.0.1\": must not be a loopback address",
                "endpoints[1].addresses[2]: \"x\": must be an IPv4 address, as addressType says",
            ],
        ),
        (
            "ports",
            json!({"ports": [{"port": 0}, {"port": 1, "protocol": "tcp"}]}),
            vec![
                "ports[0].port: 0: must be between 1 and 65535",
                "ports[1].name: \"\": must be unique within the slice",
                "ports[1].protocol: \"tcp\": must be one of TCP, UDP, SCTP",
            ],
        ),
    ] {
        assert_eq!(findings(slice(fields)), expected, "{name}");
    }
}

#[test]
fn nodes_are_checked() {
    let node = |addresses: Value| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n.1"}, "spec": {"podCIDRs": ["10.1.0.0/24", "x"]},
               "status": {"addresses": addresses}})
    };
    let addresses = json!([
        {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "N1"},
        {"type": "InternalIP", "address": "n1"}, {"type": "ExternalIP", "address": "0.0.0.0"}, {"type": "Foo", "address": ""},
    ]);
    assert_eq!(
        findings(node(addresses)),
        [
            "status.addresses[2].address: \"n1\": must be an IP address",
            "status.addresses[3].address: \"0.0.0.0\": must be the address of a host",
            "status.addresses[4].type: \"Foo\": must be one of InternalIP, ExternalIP, Hostname, InternalDNS, ExternalDNS",
            "spec.podCIDRs[1]: \"x\": must be a CIDR such as 10.244.1.0/24",
        ]
    );
}

#[test]
fn names_and_labels_are_checked() {
    let named = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    for (kind, name, is_valid) in
        [("Namespace", "a.b", false), ("Namespace", "0a", true), ("Node", "a.b", true), ("Node", "A", false)]
    {
        assert_eq!(parse(named(kind, name)).is_ok(), is_valid, "{kind} {name}");
    }
    let mut manifest = named("Node", "n");
    manifest["metadata"]["labels"] = json!({"a b": "c", "d": "e f"});
    manifest["metadata"]["annotations"] = json!({"a/b/c": "anything at all"});
    let fields: Vec<String> = parse(manifest).unwrap_err().findings.into_iter().map(|finding| finding.field).collect();
    assert_eq!(fields, ["metadata.labels", "metadata.labels[d]", "metadata.annotations"]);
}

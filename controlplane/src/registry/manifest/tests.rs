use super::*;

fn parse(manifest: Value) -> Result<Manifest, Invalid> {
    Manifest::parse(manifest.to_string().as_bytes())
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
    let object = parse(service(json!({"ports": [{"port": 80, "targetPort": "http", "protocol": "UDP"}],
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}})))
    .unwrap();
    assert_eq!(
        Value::Object(object.object)["spec"],
        json!({
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ports": [{"port": 80, "protocol": "UDP", "targetPort": "http"}],
            "internalTrafficPolicy": "Cluster",
        })
    );
    let object =
        parse(service(json!({"externalIPs": ["192.0.2.1"], "ports": [{"port": 80, "targetPort": 0}]}))).unwrap();
    assert_eq!(object.object["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(object.object["spec"]["ports"][0]["targetPort"], 80);
    let mut balancer = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
    balancer["status"]["loadBalancer"]["ingress"] = json!([{"ip": "192.0.2.1"}, {"hostname": "a.example.org"}]);
    let ingress = parse(balancer).unwrap().object["status"]["loadBalancer"]["ingress"].clone();
    assert_eq!(ingress, json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"hostname": "a.example.org"}]));
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
fn the_first_of_a_list_and_its_older_field_are_made_from_each_other() {
    let node = |spec: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": spec});
    for given in [json!({"podCIDR": "10.1.0.0/24"}), json!({"podCIDRs": ["10.1.0.0/24"]})] {
        let object = parse(node(given)).unwrap().object;
        assert_eq!(object["spec"]["podCIDR"], "10.1.0.0/24");
        assert_eq!(object["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
    }
    let pod = |status: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
               "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}, "status": status})
    };
    for given in [json!({"podIP": "10.1.0.7"}), json!({"podIPs": [{"ip": "10.1.0.7"}]})] {
        let object = parse(pod(given)).unwrap().object;
        assert_eq!(object["status"], json!({"podIP": "10.1.0.7", "podIPs": [{"ip": "10.1.0.7"}]}));
        assert_eq!(object["spec"]["containers"][0]["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
    }
}

//! A sample of the registry's rules, seen by a client of a real server.

use serde_json::{Value, json};
use tollgate_api::v1::{GetRequest, Key};
use tonic::Code;

use crate::harness::{Server, apply, node, service};

#[tokio::test]
async fn a_refused_object_names_every_mistake_and_leaves_no_trace() {
    let server = Server::start().await;
    let mut client = server.client().await;
    apply(&mut client, &service("web", json!({"clusterIP": "10.96.0.9"}))).await.unwrap();
    let revision = server.revision().await;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"},
        "addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}, {"addresses": ["fd00::1"]}]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 0}]}]}, "status": {"podIPs": [{"ip": "x"}]}});
    let mut tainted = node("n");
    tainted["spec"] = json!({"podCIDRs": ["x"], "taints": [{"key": "k", "effect": "No"}]});
    let rows: [(Value, &str); 6] = [
        (
            service(
                "web",
                json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}, {"port": 81}]}),
            ),
            "service default/web is invalid: \
             spec.ports[0].name: is required where there are several ports; \
             spec.ports[0].nodePort: 30080: must be absent for a Service of type ClusterIP; \
             spec.ports[1].name: is required where there are several ports; \
             spec.clusterIPs[0]: \"10.96.0.10\": must stay 10.96.0.9: it can't be changed, delete the Service first",
        ),
        (
            service(
                "two",
                json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 80}]}),
            ),
            "service default/two is invalid: \
             spec.clusterIPs[0]: \"10.96.0.9\": is held by service default/web; \
             spec.ports[0].nodePort: 80: must be in the node port range 30000-32767",
        ),
        (
            service(
                "two",
                json!({"type": "NodePort", "clusterIPs": ["10.96.0.9"], "sessionAffinity": "Sticky",
                    "ports": [{"port": 80}, {"name": "other", "port": 81, "nodePort": 80}]}),
            ),
            "service default/two is invalid: \
             spec.ports[0].name: is required where there are several ports; \
             spec.sessionAffinity: \"Sticky\": must be one of None, ClientIP; \
             spec.clusterIPs[0]: \"10.96.0.9\": is held by service default/web; \
             spec.ports[1].nodePort: 80: must be in the node port range 30000-32767",
        ),
        (
            slice,
            "endpointslice default/web-1 is invalid: \
             endpoints[0].addresses[0]: \"127.0.0.1\": must not be a loopback address; \
             endpoints[1].addresses[0]: \"fd00::1\": must be an IPv4 address, as addressType says",
        ),
        (
            pod,
            "pod default/p is invalid: \
             spec.containers[0].ports[0].containerPort: 0: must be between 1 and 65535; \
             status.podIPs[0].ip: \"x\": must be an IP address",
        ),
        (
            tainted,
            "node n is invalid: \
             spec.podCIDRs[0]: \"x\": must be a CIDR such as 10.244.1.0/24; \
             spec.taints[0].effect: \"No\": must be one of NoSchedule, PreferNoSchedule, NoExecute",
        ),
    ];
    for (manifest, expected) in rows {
        let refused = apply(&mut client, &manifest).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, expected));
    }
    assert_eq!(server.revision().await, revision);
    let request = GetRequest { key: Some(Key::service("default", "web")) };
    assert_eq!(client.get(request).await.unwrap().into_inner().object.unwrap().revision, revision);
    server.stop().await;
}

/// A message is sent among the headers, of which clients take a few kilobytes and break off beyond.
#[tokio::test]
async fn a_refusal_reaches_the_client_however_much_is_wrong() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let endpoints = vec![json!({"addresses": ["127.0.0.1"]}); 900];
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"},
        "addressType": "IPv4", "endpoints": endpoints});
    let long = "\u{fc}\n".repeat(50_000);
    let mut labelled = node("n");
    labelled["metadata"]["labels"] = json!({(long.as_str()): "x y"});
    for (manifest, first, last) in [
        (slice, "endpointslice default/web-1 is invalid: endpoints[0].addresses[0]: \"127.0.0.1\"", "; and 857 more"),
        (node(&long), "node \u{fc}\\n\u{fc}\\n", "(DNS-1123 subdomain)"),
        (labelled, "node n is invalid: metadata.labels: \"\u{fc}", "start and end with a letter or digit"),
        (service("web", json!({"clusterIP": [long]})), "service default/web is invalid: spec.clusterIP", "string"),
        (service("web", json!({"clusterIP": {"a": 1}, "type": long})), "service default/web is invalid: ", "string"),
        (
            service("web", json!({"ports": [{"port": long}]})),
            "service default/web is invalid: spec.ports[0].port",
            " ...",
        ),
    ] {
        let refused = apply(&mut client, &manifest).await.unwrap_err();
        let message = refused.message();
        assert_eq!(refused.code(), Code::InvalidArgument, "{message}");
        assert!(message.starts_with(first) && message.ends_with(last), "{message}");
    }
    let request = GetRequest { key: Some(Key::node(&long)) };
    assert_eq!(client.get(request).await.unwrap_err().code(), Code::NotFound);
    server.stop().await;
}

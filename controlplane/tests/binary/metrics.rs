//! `/metrics` of the real server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use tollgate_api::v1::{ApplyRequest, DeleteRequest, GetRequest, Key, Kind, WatchRequest};
use tollgate_controlplane::client::{Access, Client, connect};

use crate::process::{Process, command, run};

fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("application/openmetrics-text"), "{answer}");
    answer
}

/// The value of a metric, by its name and labels.
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing in\n{text}")).parse().unwrap()
}

async fn apply(client: &mut Client, manifest: &Value) {
    // Some are refused, and counted.
    let _ = client.apply(ApplyRequest { json: manifest.to_string().into_bytes() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--metrics-bind-address", "127.0.0.1:0", "--service-cidr", "10.96.0.0/24", "--history", "3"];
    let server = Process::start_with(dir.path(), &flags);
    let address = server.metrics.expect("it tells where its metrics are");
    let mut client = connect(&server.url, &Access::default()).await.unwrap();
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    for name in ["a", "b", "c", "Not valid"] {
        apply(&mut client, &service(name, json!({"type": "NodePort", "ports": [{"port": 80}]}))).await;
    }
    apply(&mut client, &service("a", json!({"type": "NodePort", "ports": [{"port": 81}]}))).await;
    client.delete(DeleteRequest { key: Some(Key::service("default", "b")), revision: 0 }).await.unwrap();
    assert!(client.get(GetRequest { key: Some(Key::service("default", "b")) }).await.is_err());
    let request = WatchRequest { kinds: vec![Kind::Node.into()], resume: None, client: "test".into() };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();

    let text = scrape(address);
    for (name, expected) in [
        ("tollgate_controlplane_writes_total{kind=\"service\",outcome=\"created\"}", 3.0),
        ("tollgate_controlplane_writes_total{kind=\"service\",outcome=\"configured\"}", 1.0),
        ("tollgate_controlplane_writes_total{kind=\"service\",outcome=\"deleted\"}", 1.0),
        ("tollgate_controlplane_commit_duration_seconds_count", 5.0),
        ("tollgate_controlplane_commit_failures_total", 0.0),
        ("tollgate_controlplane_store_writable", 1.0),
        ("tollgate_controlplane_objects{kind=\"service\"}", 2.0),
        ("tollgate_controlplane_revision", 6.0),
        ("tollgate_controlplane_history_changes", 3.0),
        ("tollgate_controlplane_compacted_revision", 3.0),
        ("tollgate_controlplane_compacted_changes_total", 3.0),
        ("tollgate_controlplane_watchers", 1.0),
        ("tollgate_controlplane_watch_lag_revisions", 0.0),
        ("kube_apiserver_clusterip_allocator_allocated_ips{cidr=\"10.96.0.0/24\"}", 2.0),
        ("kube_apiserver_clusterip_allocator_available_ips{cidr=\"10.96.0.0/24\"}", 252.0),
        ("kube_apiserver_nodeport_allocator_allocated_ports", 2.0),
        ("kube_apiserver_nodeport_allocator_available_ports", 2766.0),
        (&handled("Apply", "OK"), 4.0),
        (&handled("Apply", "InvalidArgument"), 1.0),
        (&handled("Get", "NotFound"), 1.0),
    ] {
        assert!((value(&text, name) - expected).abs() < 1e-9, "{name}: {} in\n{text}", value(&text, name));
    }
    assert!(value(&text, "process_start_time_seconds") > 1e9);
    assert!(value(&text, "tollgate_controlplane_store_file_bytes") > 4096.0);

    // A watcher that goes away is gone from the figures.
    drop((watch, client));
    let is_gone = || value(&scrape(address), "tollgate_controlplane_watchers") < 0.5;
    while !is_gone() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(value(&scrape(address), "tollgate_controlplane_watches_ended_total{reason=\"client\"}") > 0.5);

    // The address is taken: the error names it and the flag.
    let flags = ["serve", "--listen", "127.0.0.1:0", "--metrics-bind-address", &address.to_string(), "--data-dir"];
    let (is_done, _, complaints) = run(command(&flags).arg(dir.path().join("other")), "");
    let expected = format!("error: cannot serve metrics on {address}; is another control plane running here?");
    assert!(!is_done && complaints.contains(&expected), "{complaints}");
}

fn handled(method: &str, code: &str) -> String {
    format!(
        "grpc_server_handling_seconds_count{{grpc_method=\"tollgate.v1.ControlPlane/{method}\",grpc_code=\"{code}\"}}"
    )
}

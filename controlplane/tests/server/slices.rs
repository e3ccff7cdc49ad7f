//! The EndpointSlice controller of a real server: pods come and go, and the slices follow.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{DeleteRequest, Key, Kind, ListRequest, StatusRequest};
use tollgate_controlplane::client::Client;
use tollgate_controlplane::registry::QueueLimit;

use crate::harness::{Server, apply, delete, next, node, service, watch_from};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// A ready pod of an app.
fn pod(name: &str, app: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
           "spec": {"nodeName": "edge-1", "containers": [{"name": "c"}]},
           "status": {"phase": "Running", "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn web() -> Value {
    service("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}))
}

async fn slices(client: &mut Client) -> Vec<Value> {
    let request = ListRequest { kind: Kind::EndpointSlice.into(), namespace: String::new() };
    let objects = client.list(request).await.unwrap().into_inner().objects;
    objects.iter().map(|object| serde_json::from_slice(&object.json).unwrap()).collect()
}

/// Each endpoint in short, `web 10.0.0.1:8080 ready,serving edge-1/z1`, ordered.
fn endpoints(slices: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for slice in slices {
        let service = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap();
        for endpoint in slice["endpoints"].as_array().unwrap() {
            let words = ["ready", "serving", "terminating"];
            let words: Vec<&str> = words.into_iter().filter(|word| endpoint["conditions"][word] == true).collect();
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            lines.push(format!(
                "{service} {}:{} {} {}/{}",
                text(&endpoint["addresses"][0]),
                slice["ports"][0]["port"],
                words.join(","),
                text(&endpoint["nodeName"]),
                text(&endpoint["zone"])
            ));
        }
    }
    lines.sort();
    lines
}

/// Waits until the slices have these endpoints.
async fn settled(client: &mut Client, expected: &[&str]) -> Vec<Value> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let slices = slices(client).await;
        if endpoints(&slices) == expected {
            return slices;
        }
        assert!(tokio::time::Instant::now() < deadline, "{:?} are not {expected:?}", endpoints(&slices));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the controller has seen everything: until it has reacted to a Service and pod of the wait's own. Returns
/// the revision before them.
async fn idle(server: &Server) -> u64 {
    let mut client = server.client().await;
    let before = server.revision().await;
    apply(&mut client, &service("probe", json!({"selector": {"app": "probe"}}))).await.unwrap();
    apply(&mut client, &pod("probe", "probe", "10.9.9.9")).await.unwrap();
    let has_probe = |slices: &[Value]| endpoints(slices).iter().any(|line| line.starts_with("probe "));
    for present in [true, false] {
        while has_probe(&slices(&mut client).await) != present {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if present {
            delete(&mut client, Key::pod("default", "probe")).await;
        }
    }
    delete(&mut client, Key::service("default", "probe")).await;
    before
}

/// The changes of slices after a revision, but for those of the probe.
async fn slice_changes(server: &Server, after: u64) -> Vec<String> {
    let head = server.revision().await;
    let mut watch = watch_from(server, &[Kind::EndpointSlice], after).await;
    let mut lines = Vec::new();
    loop {
        match next(&mut watch).await {
            Event::Apply(object) => lines.push(format!("apply {}", object.key.unwrap().name)),
            Event::Delete(deleted) => lines.push(format!("delete {}", deleted.key.unwrap().name)),
            Event::Progress(progress) if progress.at.as_ref().unwrap().revision >= head => break,
            _ => {}
        }
    }
    lines.retain(|line| !line.contains(" probe-"));
    lines
}

#[tokio::test]
async fn slices_follow_pods_that_come_become_ready_terminate_and_vanish() {
    let server = Server::start().await;
    let mut client = server.client().await;
    apply(&mut client, &web()).await.unwrap();
    let mut manifest = pod("a", "web", "10.0.0.1");
    manifest["status"]["conditions"][0]["status"] = "False".into();
    apply(&mut client, &manifest).await.unwrap();
    let made = settled(&mut client, &["web 10.0.0.1:8080  edge-1/-"]).await;
    let metadata = &made[0]["metadata"];
    let name = metadata["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("web-") && name.len() == "web-".len() + 5, "{name}");
    assert_eq!(metadata["labels"][MANAGED_BY], "endpointslice-controller.tollgate.dev");
    assert_eq!(
        (&metadata["ownerReferences"][0]["kind"], &metadata["ownerReferences"][0]["name"]),
        (&json!("Service"), &json!("web"))
    );
    let triggered = |slice: &Value| {
        let annotation = &slice["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"];
        annotation.as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
    };
    let first = triggered(&made[0]);

    let mut edge = node("edge-1");
    edge["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": "z1"});
    apply(&mut client, &edge).await.unwrap();
    settled(&mut client, &["web 10.0.0.1:8080  edge-1/z1"]).await;
    apply(&mut client, &pod("a", "web", "10.0.0.1")).await.unwrap();
    let ready = settled(&mut client, &["web 10.0.0.1:8080 ready,serving edge-1/z1"]).await;
    assert_eq!(ready[0]["metadata"]["name"], name.as_str());
    assert!(triggered(&ready[0]) > first);
    apply(&mut client, &pod("b", "web", "10.0.0.2")).await.unwrap();
    let both = ["web 10.0.0.1:8080 ready,serving edge-1/z1", "web 10.0.0.2:8080 ready,serving edge-1/z1"];
    assert_eq!(settled(&mut client, &both).await.len(), 1);

    let mut manifest = pod("a", "web", "10.0.0.1");
    manifest["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    apply(&mut client, &manifest).await.unwrap();
    settled(&mut client, &["web 10.0.0.1:8080 serving,terminating edge-1/z1", both[1]]).await;
    delete(&mut client, Key::pod("default", "a")).await;
    settled(&mut client, &both[1..]).await;
    let mut manifest = pod("b", "web", "10.0.0.2");
    manifest["status"]["phase"] = "Succeeded".into();
    apply(&mut client, &manifest).await.unwrap();
    while !slices(&mut client).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn slices_follow_their_service() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (name, app, ip) in [("a", "web", "10.0.0.1"), ("b", "db", "10.0.0.2")] {
        apply(&mut client, &pod(name, app, ip)).await.unwrap();
    }
    apply(&mut client, &web()).await.unwrap();
    let made = settled(&mut client, &["web 10.0.0.1:8080 ready,serving edge-1/-"]).await;
    let change = |spec: Value| service("web", spec);
    let port = json!([{"port": 80, "targetPort": 9090}]);
    apply(&mut client, &change(json!({"selector": {"app": "db"}}))).await.unwrap();
    settled(&mut client, &["web 10.0.0.2:80 ready,serving edge-1/-"]).await;
    apply(&mut client, &change(json!({"selector": {"app": "db"}, "ports": port}))).await.unwrap();
    let changed = settled(&mut client, &["web 10.0.0.2:9090 ready,serving edge-1/-"]).await;
    assert_eq!(changed[0]["metadata"]["name"], made[0]["metadata"]["name"]);
    // Each of these takes the slices away, and the selector brings them back.
    for spec in [json!({}), json!({"type": "ExternalName", "externalName": "example.org", "selector": {"app": "db"}})] {
        apply(&mut client, &change(spec.clone())).await.unwrap();
        settled(&mut client, &[]).await;
        assert!(slices(&mut client).await.is_empty(), "{spec}");
        apply(&mut client, &change(json!({"selector": {"app": "db"}}))).await.unwrap();
        settled(&mut client, &["web 10.0.0.2:80 ready,serving edge-1/-"]).await;
    }
    delete(&mut client, Key::service("default", "web")).await;
    settled(&mut client, &[]).await;
    // A Service of that name anew has slices of its own.
    apply(&mut client, &change(json!({"selector": {"app": "db"}, "clusterIP": "None"}))).await.unwrap();
    let headless = settled(&mut client, &["web 10.0.0.2:80 ready,serving edge-1/-"]).await;
    assert_eq!(headless[0]["metadata"]["labels"]["service.kubernetes.io/headless"], "");
    server.stop().await;
}

#[tokio::test]
async fn slices_written_by_hand_are_left_alone_and_ours_are_put_right() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let by_hand = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-hand", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"port": 1}], "endpoints": [{"addresses": ["10.1.1.1"]}]});
    let revision = apply(&mut client, &by_hand).await.unwrap().object.unwrap().revision;
    apply(&mut client, &web()).await.unwrap();
    apply(&mut client, &pod("a", "web", "10.0.0.1")).await.unwrap();
    let lines = ["web 10.0.0.1:8080 ready,serving edge-1/-", "web 10.1.1.1:1  -/-"];
    let found = settled(&mut client, &lines).await;
    let mut ours = found.into_iter().find(|slice| slice["metadata"]["name"] != "web-hand").unwrap();
    ours["endpoints"][0]["addresses"][0] = "10.6.6.6".into();
    ours["metadata"]["annotations"]["note"] = "kept".into();
    ours["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    apply(&mut client, &ours).await.unwrap();
    let put_right = settled(&mut client, &lines).await;
    assert!(put_right.iter().any(|slice| slice["metadata"]["annotations"]["note"] == "kept"));
    let name = ours["metadata"]["name"].as_str().unwrap();
    delete(&mut client, Key::endpoint_slice("default", name)).await;
    settled(&mut client, &lines).await;

    delete(&mut client, Key::service("default", "web")).await;
    settled(&mut client, &lines[1..]).await;
    let kept = client.delete(DeleteRequest { key: Some(Key::endpoint_slice("default", "web-hand")), revision }).await;
    kept.expect("the slice has been written");
    server.stop().await;
}

#[tokio::test]
async fn a_restart_writes_what_is_missing_and_nothing_else() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    apply(&mut client, &web()).await.unwrap();
    apply(&mut client, &pod("a", "web", "10.0.0.1")).await.unwrap();
    settled(&mut client, &["web 10.0.0.1:8080 ready,serving edge-1/-"]).await;
    idle(&server).await;
    let before = slices(&mut client).await;
    let revision = server.revision().await;
    server = server.restart().await;
    let mut client = server.client().await;
    assert_eq!(idle(&server).await, revision);
    assert_eq!(slices(&mut client).await, before);
    assert_eq!(slice_changes(&server, revision).await, [""; 0]);

    // Stopped right after the change: whether or not it was still seen, it is not lost.
    apply(&mut client, &pod("b", "web", "10.0.0.2")).await.unwrap();
    server = server.restart().await;
    let both = ["web 10.0.0.1:8080 ready,serving edge-1/-", "web 10.0.0.2:8080 ready,serving edge-1/-"];
    settled(&mut server.client().await, &both).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_left_behind_catches_up() {
    // A queue of one change: whatever comes in twos has overrun it.
    let server = Server::start_with(|config| config.queue = QueueLimit { changes: 1, bytes: 1 << 20 }).await;
    let mut client = server.client().await;
    apply(&mut client, &web()).await.unwrap();
    let mut writers = Vec::new();
    for n in 0..40 {
        let mut client = client.clone();
        writers.push(tokio::spawn(async move {
            apply(&mut client, &pod(&format!("p{n}"), "web", &format!("10.0.0.{n}"))).await.unwrap();
            if n % 2 == 0 {
                delete(&mut client, Key::pod("default", format!("p{n}"))).await;
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut expected: Vec<String> =
        (1..40).step_by(2).map(|n| format!("web 10.0.0.{n}:8080 ready,serving edge-1/-")).collect();
    expected.sort();
    settled(&mut client, &expected.iter().map(String::as_str).collect::<Vec<_>>()).await;
    delete(&mut client, Key::service("default", "web")).await;
    settled(&mut client, &[]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pods_are_ten_slices_and_a_change_of_one_pod_writes_one() {
    const PODS: usize = 1000;
    let server = Server::start().await;
    let mut client = server.client().await;
    apply(&mut client, &web()).await.unwrap();
    let ip = |n: usize| format!("10.0.{}.{}", n / 250, n % 250 + 1);
    let mut writers = Vec::new();
    for part in 0..50 {
        let mut client = client.clone();
        writers.push(tokio::spawn(async move {
            for n in (part..PODS).step_by(50) {
                apply(&mut client, &pod(&format!("p{n}"), "web", &ip(n))).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let count = |slices: &[Value]| -> Vec<usize> {
        slices.iter().map(|slice| slice["endpoints"].as_array().unwrap().len()).collect()
    };
    while count(&slices(&mut client).await).iter().sum::<usize>() != PODS {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let made = slices(&mut client).await;
    assert_eq!(count(&made), [100; 10]);
    let addresses: BTreeMap<String, ()> = endpoints(&made).into_iter().map(|line| (line, ())).collect();
    assert_eq!(addresses.len(), PODS);

    type Step = (&'static str, fn(&mut Value));
    let steps: [Step; 3] = [
        ("unready", |pod| pod["status"]["conditions"][0]["status"] = "False".into()),
        ("of no interest", |pod| pod["status"]["startTime"] = "2026-01-01T00:00:00Z".into()),
        ("finished", |pod| pod["status"]["phase"] = "Failed".into()),
    ];
    let mut manifest = pod("p500", "web", &ip(500));
    for (name, step) in steps {
        idle(&server).await;
        step(&mut manifest);
        let revision = apply(&mut client, &manifest).await.unwrap().object.unwrap().revision;
        idle(&server).await;
        let changes = slice_changes(&server, revision).await;
        assert_eq!(changes.len(), usize::from(name != "of no interest"), "{name}: {changes:?}");
    }
    // The one that comes has the place of the one that went.
    let revision = apply(&mut client, &pod("new", "web", "10.2.0.1")).await.unwrap().object.unwrap().revision;
    client.status(StatusRequest { wait_for_revision: revision + 1 }).await.unwrap();
    assert_eq!(count(&slices(&mut client).await), [100; 10]);
    server.stop().await;
}

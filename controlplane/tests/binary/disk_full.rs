//! The real server on a file system that runs out of space: a small tmpfs in a mount namespace of the test's own.

use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{ApplyRequest, GetRequest, Key, Kind, ListRequest, Object, WatchEvent, WatchRequest};
use tollgate_controlplane::client::{Access, Client, connect};
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::process::Process;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const CONTROL_PLANE: &str = "tollgate.v1.ControlPlane";

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    // The namespace is that of one thread, and of the server that it starts.
    let test = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of its own; run the tests as root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        set_size(&path, MsFlags::empty(), "4m");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(fill_and_free(&path));
    });
    test.join().unwrap();
}

fn set_size(path: &Path, flags: MsFlags, size: &str) {
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(format!("size={size}").as_str())).unwrap();
}

async fn fill_and_free(path: &Path) {
    let server = Process::start(path);
    let mut client = connect(&server.url, &Access::default()).await.unwrap();
    let mut watch = watch(&mut client).await;
    let mut acknowledged = Vec::new();
    let refused = loop {
        assert!(acknowledged.len() < 1_000, "the disk does not get full");
        match apply(&mut client, acknowledged.len()).await {
            Ok(object) => acknowledged.push(object),
            Err(status) => break status,
        }
    };
    check_refusal(&refused);
    assert!(acknowledged.len() > 5, "{}", acknowledged.len());
    // Everything else goes on: what was acknowledged has been told, can be read, and can be watched anew.
    assert_eq!(seen(&mut watch, acknowledged.len()).await, acknowledged);
    check_refusal(&apply(&mut client, 2_000).await.unwrap_err());
    assert_eq!(nodes(&mut client).await, acknowledged);
    let key = Some(Key::node("n0"));
    assert_eq!(client.get(GetRequest { key }).await.unwrap().into_inner().object.as_ref(), acknowledged.first());
    let mut second = self::watch(&mut client).await;
    assert_eq!(seen(&mut second, acknowledged.len()).await.len(), acknowledged.len());
    // Probes learn that writes fail, and that the server is worth talking to.
    let mut health = HealthClient::new(Endpoint::from_shared(server.url.clone()).unwrap().connect().await.unwrap());
    assert_eq!(check(&mut health, CONTROL_PLANE).await, ServingStatus::NotServing);
    assert_eq!(check(&mut health, "").await, ServingStatus::Serving);

    // Nor does a start need room.
    server.kill();
    let server = Process::start(path);
    let mut client = connect(&server.url, &Access::default()).await.unwrap();
    assert_eq!(nodes(&mut client).await, acknowledged);
    check_refusal(&apply(&mut client, 3_000).await.unwrap_err());
    let mut watch = self::watch(&mut client).await;
    seen(&mut watch, acknowledged.len()).await;

    // With room there are writes again, without anybody having to write first.
    set_size(path, MsFlags::MS_REMOUNT, "64m");
    let mut health = HealthClient::new(Endpoint::from_shared(server.url.clone()).unwrap().connect().await.unwrap());
    let is_back = async {
        while check(&mut health, CONTROL_PLANE).await != ServingStatus::Serving {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_back).await.expect("no writes although there is room");
    let last = acknowledged.last().unwrap().revision;
    for n in 0..20 {
        let object = apply(&mut client, 4_000 + n).await.unwrap();
        // What was refused has used up no revision.
        assert_eq!(object.revision, last + 1 + n as u64);
        acknowledged.push(object);
    }
    assert_eq!(seen(&mut watch, 20).await, acknowledged[acknowledged.len() - 20..]);
    server.kill();
    let server = Process::start(path);
    assert_eq!(nodes(&mut connect(&server.url, &Access::default()).await.unwrap()).await.len(), acknowledged.len());
}

fn check_refusal(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    for words in ["no space is left for the store ", "tollgate.redb", "No space left on device"] {
        assert!(status.message().contains(words), "{status}");
    }
}

async fn apply(client: &mut Client, n: usize) -> Result<Object, Status> {
    let manifest = json!({"apiVersion": "v1", "kind": "Node",
                          "metadata": {"name": format!("n{n}"), "annotations": {"bulk": "x".repeat(50_000)}}});
    let answer = client.apply(ApplyRequest { json: manifest.to_string().into_bytes() }).await?;
    Ok(answer.into_inner().object.unwrap())
}

/// All nodes, in the order in which they were written.
async fn nodes(client: &mut Client) -> Vec<Object> {
    let request = ListRequest { kind: Kind::Node.into(), namespace: String::new() };
    let mut nodes = client.list(request).await.unwrap().into_inner().objects;
    nodes.sort_by_key(|node| node.revision);
    nodes
}

async fn watch(client: &mut Client) -> Streaming<WatchEvent> {
    let request = WatchRequest { kinds: vec![Kind::Node.into()], resume: None, client: "test".into() };
    client.watch(request).await.unwrap().into_inner()
}

/// The next so many objects of a watch.
async fn seen(watch: &mut Streaming<WatchEvent>, count: usize) -> Vec<Object> {
    let mut objects = Vec::new();
    while objects.len() < count {
        let event = tokio::time::timeout(PATIENCE, watch.message()).await.expect("an event").unwrap();
        match event.expect("the watch ended").event.unwrap() {
            Event::Apply(object) => objects.push(object),
            Event::Init(_) | Event::InitDone(_) | Event::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    objects
}

async fn check(health: &mut HealthClient<tonic::transport::Channel>, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    health.check(request).await.unwrap().into_inner().status()
}

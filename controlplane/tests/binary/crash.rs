//! `kill -9` of the real server in the middle of concurrent writes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::process::Process;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{ApplyRequest, Kind, ListRequest, Object, ResumeToken, StatusRequest, WatchRequest};
use tollgate_controlplane::client::{Access, Client, connect};

const ROUNDS: usize = 5;
const WRITERS: usize = 8;
/// Acknowledged in each round, at least.
const WRITES: usize = 60;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<String, Object> = BTreeMap::new();
    let mut seen = Seen::default();
    for round in 0..ROUNDS {
        let server = Process::start(dir.path());
        let (acks, mut acked) = mpsc::unbounded_channel();
        for writer in 0..WRITERS {
            let client = connect(&server.url, &Access::default()).await.unwrap();
            tokio::spawn(write(client, format!("r{round}-w{writer}"), acks.clone()));
        }
        drop(acks);
        let mut count = 0;
        while count < WRITES + 7 * round {
            let object = tokio::time::timeout(PATIENCE, acked.recv()).await.unwrap().expect("the writers gave up");
            acknowledged.insert(object.key.clone().unwrap().name, object);
            count += 1;
        }
        server.kill();
        // What was acknowledged before the end, but not yet counted.
        while let Some(object) = acked.recv().await {
            acknowledged.insert(object.key.clone().unwrap().name, object);
        }
        let server = Process::start(dir.path());
        check(&mut connect(&server.url, &Access::default()).await.unwrap(), &acknowledged, &mut seen).await;
        server.kill();
    }
    assert!(acknowledged.len() >= ROUNDS * WRITES);
}

/// What a watcher has seen that resumes after every crash.
#[derive(Default)]
struct Seen {
    token: Option<ResumeToken>,
    objects: BTreeMap<String, Object>,
}

/// Applies Services until the server is gone.
async fn write(mut client: Client, prefix: String, acks: mpsc::UnboundedSender<Object>) {
    for n in 0.. {
        let name = format!("{prefix}-{n}");
        let manifest = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                              "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        match client.apply(ApplyRequest { json: manifest.to_string().into_bytes() }).await {
            Ok(answer) => acks.send(answer.into_inner().object.unwrap()).unwrap(),
            Err(_) => return,
        }
    }
}

async fn check(client: &mut Client, acknowledged: &BTreeMap<String, Object>, seen: &mut Seen) {
    let request = ListRequest { kind: Kind::Service.into(), namespace: String::new() };
    let list = client.list(request).await.unwrap().into_inner();
    let stored: BTreeMap<String, Object> =
        list.objects.into_iter().map(|object| (object.key.clone().unwrap().name, object)).collect();
    for (name, object) in acknowledged {
        assert_eq!(stored.get(name), Some(object), "{name} was acknowledged");
    }
    let mut held = BTreeSet::new();
    for object in stored.values() {
        let json: Value = serde_json::from_slice(&object.json).unwrap();
        for field in ["/spec/clusterIP", "/spec/ports/0/nodePort"] {
            let value = json.pointer(field).unwrap().to_string();
            assert!(held.insert(value.clone()), "{value} was handed out twice");
        }
    }
    let head = client.status(StatusRequest::default()).await.unwrap().into_inner().at.unwrap();
    let resume = seen.token.replace(head.clone());
    let request = WatchRequest { kinds: vec![Kind::Service.into()], resume, client: "test".into() };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    loop {
        match watch.message().await.unwrap().unwrap().event.unwrap() {
            Event::Apply(object) => drop(seen.objects.insert(object.key.clone().unwrap().name, object)),
            Event::InitDone(done) if done.at.as_ref() == Some(&head) => break,
            Event::Progress(progress) if progress.at.as_ref() == Some(&head) => break,
            Event::Init(_) | Event::InitDone(_) | Event::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.objects, stored);
}

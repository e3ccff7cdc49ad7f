//! A control plane backed up while it is written to, and restored in another place.

use std::path::Path;

use serde_json::{Value, json};
use tollgate_api::v1::relist::Reason;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{ApplyRequest, Key, Kind, ListRequest, Object, ResumeToken, StatusRequest, WatchRequest};
use tollgate_controlplane::backup;
use tollgate_controlplane::client::{Access, Client, connect};
use tonic::Code;

use crate::process::{Process, command, run};

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
           "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
}

async fn apply(client: &mut Client, manifest: &Value) -> Result<Object, tonic::Status> {
    let answer = client.apply(ApplyRequest { json: manifest.to_string().into_bytes() }).await?;
    Ok(answer.into_inner().object.unwrap())
}

async fn services(client: &mut Client) -> Vec<Object> {
    let request = ListRequest { kind: Kind::Service.into(), namespace: String::new() };
    client.list(request).await.unwrap().into_inner().objects
}

async fn position(client: &mut Client) -> ResumeToken {
    client.status(StatusRequest::default()).await.unwrap().into_inner().at.unwrap()
}

fn back_up(server: &Process, file: &Path) {
    let (is_done, results, complaints) = run(command(&["backup"]).arg(file).env("TOLLGATE_SERVER", &server.url), "");
    assert!(is_done && complaints.is_empty() && results.contains(" objects of store "), "{results}{complaints}");
}

fn restore(file: &Path, data_dir: &Path) -> (bool, String, String) {
    run(command(&["restore"]).arg(file).arg("--data-dir").arg(data_dir), "")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_control_plane_has_what_was_backed_up_and_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let (file, data_dir) = (dir.path().join("backup.jsonl"), dir.path().join("new"));
    let server = Process::start(&dir.path().join("old"));
    let mut client = connect(&server.url, &Access::default()).await.unwrap();
    for name in ["a", "b"] {
        apply(&mut client, &service(name)).await.unwrap();
    }
    let (before, at) = (services(&mut client).await, position(&mut client).await);
    back_up(&server, &file);
    // What the old store goes on to is not in the backup.
    let lost = apply(&mut client, &service("lost")).await.unwrap();
    let end = position(&mut client).await;
    server.kill();

    let (is_done, results, complaints) = restore(&file, &data_dir);
    let expected = format!("3 objects of store {} at revision {} are now in store ", at.store_id, at.revision);
    assert!(is_done && results.starts_with(&expected), "{results}{complaints}");
    let (is_done, _, complaints) = restore(&file, &data_dir);
    assert!(!is_done && complaints.contains("is not empty: it has tollgate.redb"), "{complaints}");

    let server = Process::start(&data_dir);
    let mut client = connect(&server.url, &Access::default()).await.unwrap();
    // Byte for byte: uids, addresses, node ports, resourceVersions.
    assert_eq!(services(&mut client).await, before);
    for token in [at.clone(), end.clone()] {
        let request = WatchRequest { kinds: vec![Kind::Service.into()], resume: Some(token), client: "test".into() };
        let first = client.watch(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
        let Some(Event::Relist(relist)) = first.event else { panic!("{first:?}") };
        assert_eq!(relist.reason(), Reason::OtherStore);
    }
    // New revisions are none that the old store gave out, and no address is given out again.
    let mut stale = service("lost");
    stale["metadata"]["resourceVersion"] = lost.revision.to_string().into();
    assert_eq!(apply(&mut client, &stale).await.unwrap_err().code(), Code::Aborted);
    let made = apply(&mut client, &service("c")).await.unwrap();
    assert!(made.revision > end.revision + 1_000_000, "{}", made.revision);
    let address = |object: &Object| {
        let json: Value = serde_json::from_slice(&object.json).unwrap();
        (json["spec"]["clusterIP"].clone(), json["spec"]["ports"][0]["nodePort"].clone())
    };
    assert!(before.iter().all(|object| address(object).0 != address(&made).0 && address(object).1 != address(&made).1));
    server.kill();
    let server = Process::start(&data_dir);
    assert_eq!(services(&mut connect(&server.url, &Access::default()).await.unwrap()).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_during_writes_is_of_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup.jsonl");
    let server = Process::start(&dir.path().join("data"));
    let mut client = connect(&server.url, &Access::default()).await.unwrap();
    let first = apply(&mut client, &service("s0")).await.unwrap().revision;
    let writer = tokio::spawn(async move {
        for n in 1.. {
            if apply(&mut client, &service(&format!("s{n}"))).await.is_err() {
                return;
            }
        }
    });
    for _ in 0..3 {
        back_up(&server, &file);
        let backup = backup::read(&file).unwrap();
        // One Service for each revision: those up to the backup's are all there, and no other.
        let mut revisions: Vec<u64> = backup
            .records
            .iter()
            .filter(|record| record.key != Key::namespace("default"))
            .map(|record| record.revision)
            .collect();
        revisions.sort_unstable();
        assert_eq!(revisions, (first..=backup.revision).collect::<Vec<_>>());
    }
    server.kill();
    writer.await.unwrap();
}

#[test]
fn a_missing_or_foreign_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup.jsonl");
    let data_dir = dir.path().join("data");
    let (is_done, _, complaints) = restore(&file, &data_dir);
    assert!(!is_done && complaints.starts_with("error: cannot read the backup "), "{complaints}");
    std::fs::write(&file, "{}\n").unwrap();
    let (is_done, _, complaints) = restore(&file, &data_dir);
    assert!(!is_done && complaints.contains("is damaged: line 1: is no header of a backup"), "{complaints}");
    assert!(!data_dir.exists());
}

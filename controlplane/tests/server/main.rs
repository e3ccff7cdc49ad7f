//! A real server over a real store, talked to through gRPC.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod harness;
mod pki;
mod rules;
mod security;
mod slices;
mod standard;
mod watchers;

use std::collections::BTreeSet;
use std::time::Duration;

use harness::{Server, apply, delete, events, names, next, node, open_watch, service, watch_from};
use serde_json::{Value, json};
use tollgate_api::v1::apply_response::Outcome;
use tollgate_api::v1::relist::Reason;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{ApplyRequest, DeleteRequest, GetRequest, Key, Kind, ListRequest, ResumeToken, StatusRequest};
use tollgate_controlplane::registry::QueueLimit;
use tollgate_controlplane::store::Retention;
use tonic::Code;

#[tokio::test]
async fn objects_are_applied_read_listed_and_deleted() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let answer = apply(&mut client, &service("web", json!({}))).await.unwrap();
    assert_eq!(answer.outcome(), Outcome::Created);
    let object = answer.object.unwrap();
    assert_eq!((object.key.clone().unwrap(), object.revision), (Key::service("default", "web"), 2));
    let json: Value = serde_json::from_slice(&object.json).unwrap();
    assert_eq!(json["metadata"]["resourceVersion"], "2");

    let key = || Some(Key::service("default", "web"));
    let got = client.get(GetRequest { key: key() }).await.unwrap().into_inner().object.unwrap();
    assert_eq!(got, object);
    apply(&mut client, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})).await.unwrap();
    let mut elsewhere = service("web", json!({}));
    elsewhere["metadata"]["namespace"] = "a".into();
    apply(&mut client, &elsewhere).await.unwrap();
    let list = |namespace: &str| ListRequest { kind: Kind::Service.into(), namespace: namespace.into() };
    let all = client.list(list("")).await.unwrap().into_inner();
    assert_eq!(names(&all.objects), ["service a/web", "service default/web"]);
    assert_eq!(all.at.unwrap().revision, 4);
    assert_eq!(names(&client.list(list("a")).await.unwrap().into_inner().objects), ["service a/web"]);
    assert_eq!(names(&client.list(list("b")).await.unwrap().into_inner().objects), [""; 0]);

    let stale = client.delete(DeleteRequest { key: key(), revision: 1 }).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    let deleted = client.delete(DeleteRequest { key: key(), revision: 2 }).await.unwrap().into_inner();
    assert_eq!(deleted.revision, 5);
    assert_eq!(client.get(GetRequest { key: key() }).await.unwrap_err().code(), Code::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn errors_have_the_codes_of_the_contract() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut conditional = service("web", json!({}));
    conditional["metadata"]["resourceVersion"] = "9".into();
    let mut homeless = service("web", json!({}));
    homeless["metadata"]["namespace"] = "nowhere".into();
    for (manifest, code) in [
        (json!([]), Code::InvalidArgument),
        (service("Web", json!({})), Code::InvalidArgument),
        (homeless, Code::NotFound),
        (conditional, Code::Aborted),
    ] {
        assert_eq!(apply(&mut client, &manifest).await.unwrap_err().code(), code, "{manifest}");
    }
    for (key, code) in [
        (None, Code::InvalidArgument),
        (Some(Key::new(Kind::Unspecified, "", "x")), Code::InvalidArgument),
        (Some(Key::service("", "web")), Code::InvalidArgument),
        (Some(Key::service("default", "web")), Code::NotFound),
        (Some(Key::namespace("default")), Code::FailedPrecondition),
    ] {
        let refused = client.delete(DeleteRequest { key: key.clone(), revision: 0 }).await.unwrap_err();
        assert_eq!(refused.code(), code, "{key:?}: {refused}");
    }
    let refused = client.watch(tollgate_api::v1::WatchRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test]
async fn a_watch_lists_and_then_follows() {
    let server = Server::start().await;
    let mut client = server.client().await;
    apply(&mut client, &service("a", json!({}))).await.unwrap();
    apply(&mut client, &node("n")).await.unwrap();
    let mut watch = open_watch(&mut client, &[Kind::Service, Kind::Namespace], None).await;
    assert_eq!(
        events(&mut watch, 4).await,
        ["init 3", "apply 2 service default/a", "apply 1 namespace default", "done 3"]
    );
    apply(&mut client, &service("b", json!({}))).await.unwrap();
    apply(&mut client, &node("m")).await.unwrap();
    delete(&mut client, Key::service("default", "a")).await;
    assert_eq!(events(&mut watch, 2).await, ["apply 4 service default/b", "delete 6 service default/a"]);
    server.stop().await;
}

#[tokio::test]
async fn an_idle_watch_moves_its_token_over_other_kinds() {
    let server = Server::start_with(|config| config.progress_interval = Duration::from_millis(20)).await;
    let mut client = server.client().await;
    let mut watch = open_watch(&mut client, &[Kind::Service], None).await;
    assert_eq!(events(&mut watch, 2).await, ["init 1", "done 1"]);
    apply(&mut client, &node("n")).await.unwrap();
    loop {
        match next(&mut watch).await {
            Event::Progress(progress) if progress.at.as_ref().unwrap().revision == 2 => break,
            Event::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_watch_resumes_at_every_revision() {
    // A queue of one change, so that most of it comes from the history on disk.
    for queued in [1, 1000] {
        let server = Server::start_with(|config| config.queue = QueueLimit { changes: queued, bytes: 1 << 20 }).await;
        let mut client = server.client().await;
        let mut history = vec!["apply 1 namespace default".to_owned()];
        for revision in 2..=40_u64 {
            let name = format!("n{}", revision % 3);
            if revision % 7 == 0 {
                delete(&mut client, Key::node(&name)).await;
                history.push(format!("delete {revision} node {name}"));
            } else {
                let mut manifest = node(&name);
                manifest["metadata"]["labels"] = json!({"r": revision.to_string()});
                apply(&mut client, &manifest).await.unwrap();
                history.push(format!("apply {revision} node {name}"));
            }
        }
        let store_id = server.store_id().await;
        for (revision, missed) in
            (0..=40_u64).map(|revision| (revision, &history[usize::try_from(revision).unwrap()..]))
        {
            let token = ResumeToken { store_id: store_id.clone(), revision };
            let mut watch = open_watch(&mut client, &[Kind::Node, Kind::Namespace], Some(token)).await;
            assert_eq!(events(&mut watch, missed.len()).await, missed, "after {revision}");
            // Then it says that this is all.
            let Event::Progress(progress) = next(&mut watch).await else { panic!("no progress after {revision}") };
            assert_eq!(progress.at.unwrap().revision, 40);
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_resumed_means_relist() {
    let server = Server::start_with(|config| {
        config.retention = Retention::newest(4);
        config.queue = QueueLimit { changes: 2, bytes: 1 << 20 };
    })
    .await;
    let mut client = server.client().await;
    for n in 0..30 {
        apply(&mut client, &node(&format!("n{n}"))).await.unwrap();
    }
    let status = client.status(StatusRequest::default()).await.unwrap().into_inner();
    let store_id = status.at.clone().unwrap().store_id;
    assert!(status.compacted_revision > 0);
    let token = |store_id: &str, revision| ResumeToken { store_id: store_id.to_owned(), revision };
    for (token, reason) in [
        (token("other", 5), Reason::OtherStore),
        (token(&store_id, 32), Reason::Future),
        (token(&store_id, status.compacted_revision - 1), Reason::Compacted),
        (token(&store_id, 0), Reason::Compacted),
    ] {
        let mut watch = open_watch(&mut client, &[Kind::Node], Some(token)).await;
        let Event::Relist(relist) = next(&mut watch).await else { panic!("no relist: {reason:?}") };
        assert_eq!(relist.reason(), reason, "{}", relist.message);
        assert!(watch.message().await.unwrap().is_none());
    }
    let mut watch = open_watch(&mut client, &[Kind::Node], Some(token(&store_id, status.compacted_revision))).await;
    let expected = format!("apply {} ", status.compacted_revision + 1);
    assert!(events(&mut watch, 1).await[0].starts_with(&expected));
    server.stop().await;
}

#[tokio::test]
async fn a_restart_is_no_reason_to_relist() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    apply(&mut client, &node("a")).await.unwrap();
    let mut watch = open_watch(&mut client, &[Kind::Node], None).await;
    assert_eq!(events(&mut watch, 3).await, ["init 2", "apply 2 node a", "done 2"]);
    let token = ResumeToken { store_id: server.store_id().await, revision: 2 };
    apply(&mut client, &node("b")).await.unwrap();
    delete(&mut client, Key::node("a")).await;
    server = server.restart().await;
    let mut client = server.client().await;
    let mut watch = open_watch(&mut client, &[Kind::Node], Some(token)).await;
    assert_eq!(events(&mut watch, 2).await, ["apply 3 node b", "delete 4 node a"]);
    // No revision is used a second time.
    assert_eq!(apply(&mut client, &node("c")).await.unwrap().object.unwrap().revision, 5);
    server.stop().await;
}

#[tokio::test]
async fn the_end_of_the_server_ends_watches_with_unavailable() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut watch = open_watch(&mut client, &[Kind::Node], None).await;
    events(&mut watch, 2).await;
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.status(StatusRequest { wait_for_revision: 99 }).await });
    let (stopped, last) = tokio::join!(server.stop(), next(&mut watch));
    let () = stopped;
    // First where it stands, so that it can resume elsewhere with that.
    let Event::Progress(progress) = last else { panic!("{last:?}") };
    assert_eq!(progress.at.unwrap().revision, 1);
    assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn status_waits_for_a_revision() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.status(StatusRequest { wait_for_revision: 3 }).await });
    apply(&mut client, &node("a")).await.unwrap();
    apply(&mut client, &node("b")).await.unwrap();
    assert!(waiting.await.unwrap().unwrap().into_inner().at.unwrap().revision >= 3);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_cut_and_holds_up_nobody() {
    const CHANGES: u64 = 80;
    let server = Server::start_with(|config| config.queue = QueueLimit { changes: 20, bytes: 64 << 20 }).await;
    let mut writer = server.client().await;
    // Connections of their own, or the slow one would use up the flow-control window that they share.
    let mut slow = open_watch(&mut server.client().await, &[Kind::Node], None).await;
    assert_eq!(events(&mut slow, 2).await, ["init 1", "done 1"]);
    let mut fast = open_watch(&mut server.client().await, &[Kind::Node], None).await;
    assert_eq!(events(&mut fast, 2).await, ["init 1", "done 1"]);
    for revision in 2..2 + CHANGES {
        let mut manifest = node("n");
        manifest["metadata"]["annotations"] = json!({"r": revision.to_string(), "bulk": "x".repeat(100_000)});
        apply(&mut writer, &manifest).await.unwrap();
        assert_eq!(events(&mut fast, 1).await, [format!("apply {revision} node n")]);
    }
    let mut last = 1;
    let status = loop {
        match slow.message().await {
            Ok(event) => match event.unwrap().event.unwrap() {
                Event::Apply(object) => {
                    assert_eq!(object.revision, last + 1);
                    last = object.revision;
                }
                Event::Progress(_) => {}
                other => panic!("{other:?}"),
            },
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let mut resumed = watch_from(&server, &[Kind::Node], last).await;
    for revision in last + 1..2 + CHANGES {
        assert_eq!(events(&mut resumed, 1).await, [format!("apply {revision} node n")]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_or_doubled_between_list_and_stream() {
    const WRITES: u64 = 300;
    let server = Server::start().await;
    let mut writer = server.client().await;
    let writing = tokio::spawn(async move {
        for n in 0..WRITES {
            apply(&mut writer, &node(&format!("n{n}"))).await.unwrap();
        }
    });
    let mut watchers = Vec::new();
    for _ in 0..8 {
        let mut client = server.client().await;
        watchers.push(tokio::spawn(async move {
            let mut watch = open_watch(&mut client, &[Kind::Node], None).await;
            let mut seen = BTreeSet::new();
            while seen.len() < usize::try_from(WRITES).unwrap() {
                if let Event::Apply(object) = next(&mut watch).await {
                    assert!(seen.insert(object.revision), "{} came twice", object.revision);
                }
            }
            seen
        }));
        // The next watcher begins at another point of the writes.
        let revision = server.revision().await + WRITES / 10;
        server.client().await.status(StatusRequest { wait_for_revision: revision.min(WRITES) }).await.unwrap();
    }
    writing.await.unwrap();
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), (2..2 + WRITES).collect());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cluster_ip_is_handed_out_twice() {
    const CLIENTS: usize = 8;
    const EACH: usize = 20;
    // 254 addresses: enough, but few enough to meet if they could.
    let mut server = Server::start_with(|config| config.service_cidrs = "10.96.0.0/24".parse().unwrap()).await;
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let mut connection = server.client().await;
        tasks.push(tokio::spawn(async move {
            for n in 0..EACH {
                let name = format!("s{client}-{n}");
                apply(&mut connection, &service(&name, json!({}))).await.unwrap();
                if n % 3 == 0 {
                    delete(&mut connection, Key::service("default", name)).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let held = cluster_ips(&server).await;
    server = server.restart().await;
    assert_eq!(cluster_ips(&server).await, held);
    let mut client = server.client().await;
    for n in held.len()..254 {
        apply(&mut client, &service(&format!("more-{n}"), json!({}))).await.unwrap();
    }
    assert_eq!(cluster_ips(&server).await.len(), 254);
    let exhausted = apply(&mut client, &service("too-many", json!({}))).await.unwrap_err();
    assert_eq!(exhausted.code(), Code::ResourceExhausted, "{exhausted}");
    server.stop().await;
}

/// The ClusterIPs of all Services, none of them twice.
async fn cluster_ips(server: &Server) -> BTreeSet<String> {
    let request = ListRequest { kind: Kind::Service.into(), namespace: String::new() };
    let objects = server.client().await.list(request).await.unwrap().into_inner().objects;
    let address =
        |json: &[u8]| serde_json::from_slice::<Value>(json).unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let addresses: BTreeSet<String> = objects.iter().map(|object| address(&object.json)).collect();
    assert_eq!(addresses.len(), objects.len());
    addresses
}

#[tokio::test]
async fn large_lists_come_whole() {
    let server = Server::start().await;
    let mut client = server.client().await;
    // Together more than a gRPC message is by default.
    for n in 0..50 {
        let mut manifest = node(&format!("n{n}"));
        manifest["metadata"]["annotations"] = json!({"bulk": "x".repeat(200_000)});
        client.apply(ApplyRequest { json: manifest.to_string().into_bytes() }).await.unwrap();
    }
    let request = ListRequest { kind: Kind::Node.into(), namespace: String::new() };
    assert_eq!(client.list(request).await.unwrap().into_inner().objects.len(), 50);
    server.stop().await;
}

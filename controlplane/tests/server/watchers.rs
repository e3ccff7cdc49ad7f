//! Watchers that stall, vanish, and resume, at every point of a long history and of what is left of it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tollgate_api::v1::relist::Reason;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{Key, Kind, ListRequest, ResumeToken, StatusRequest, WatchEvent};
use tollgate_controlplane::client::Client;
use tollgate_controlplane::registry::QueueLimit;
use tollgate_controlplane::store::Retention;
use tonic::{Code, Request, Streaming};

use crate::harness::{Server, apply, delete, events, next, node, open_watch, service, watch_from};

/// What a client holds: objects by name, each at its revision.
type Held = BTreeMap<String, u64>;

const KINDS: [Kind; 2] = [Kind::Node, Kind::Service];

/// Writes and removes at random, and returns what was held after each revision from the first on.
async fn random_history(client: &mut Client, writes: usize, seed: u64) -> BTreeMap<u64, Held> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut held = Held::new();
    let mut history = BTreeMap::from([(1, held.clone())]);
    while history.len() <= writes {
        let name = format!("n{}", random.random_range(0..12));
        let (key, manifest) = match random.random_bool(0.5) {
            true => (Key::node(&name), node(&name)),
            false => (Key::service("default", &name), service(&name, json!({}))),
        };
        let revision = if held.contains_key(&key.to_string()) && random.random_bool(0.4) {
            held.remove(&key.to_string());
            delete(client, key).await
        } else {
            let mut manifest = manifest;
            manifest["metadata"]["annotations"] = json!({"n": history.len().to_string()});
            let revision = apply(client, &manifest).await.unwrap().object.unwrap().revision;
            held.insert(key.to_string(), revision);
            revision
        };
        history.insert(revision, held.clone());
    }
    history
}

/// What the store has.
async fn stored(client: &mut Client) -> Held {
    let mut held = Held::new();
    for kind in KINDS {
        let list = client.list(ListRequest { kind: kind.into(), namespace: String::new() }).await.unwrap().into_inner();
        held.extend(list.objects.into_iter().map(|object| (object.key.unwrap().to_string(), object.revision)));
    }
    held
}

/// Takes events until the watch is at a revision; `Err`: it must relist.
async fn follow(watch: &mut Streaming<WatchEvent>, held: &mut Held, until: u64) -> Result<(), Reason> {
    loop {
        let at = match next(watch).await {
            Event::Apply(object) => {
                held.insert(object.key.unwrap().to_string(), object.revision);
                object.revision
            }
            Event::Delete(deleted) => {
                held.remove(&deleted.key.unwrap().to_string()).expect("it was there");
                deleted.revision
            }
            Event::Progress(progress) => progress.at.unwrap().revision,
            Event::Relist(relist) => return Err(relist.reason()),
            other => panic!("{other:?}"),
        };
        if at >= until {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn what_a_resumed_watcher_had_and_sees_is_what_the_store_has() {
    for (seed, queued) in [(1, 20), (2, 1000)] {
        let server = Server::start_with(|config| {
            config.retention = Retention::newest(150);
            config.queue = QueueLimit { changes: queued, bytes: 64 << 20 };
        })
        .await;
        let mut client = server.client().await;
        let history = random_history(&mut client, 300, seed).await;
        let status = client.status(StatusRequest::default()).await.unwrap().into_inner();
        let (at, compacted) = (status.at.unwrap(), status.compacted_revision);
        assert!(compacted >= 100, "{compacted}");
        let expected = stored(&mut client).await;
        for (revision, had) in history {
            let token = ResumeToken { store_id: at.store_id.clone(), revision };
            let mut watch = open_watch(&mut client, &KINDS, Some(token)).await;
            let mut held = had.clone();
            let followed = follow(&mut watch, &mut held, at.revision).await;
            if revision < compacted {
                assert_eq!(followed, Err(Reason::Compacted), "after {revision}");
                assert_eq!(held, had, "nothing comes before it");
            } else {
                assert_eq!(followed, Ok(()), "after {revision}");
                assert_eq!(held, expected, "seed {seed}, after {revision}");
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_is_overtaken_by_compaction_is_told_to_relist() {
    let server = Server::start_with(|config| {
        config.retention = Retention::newest(20);
        config.queue = QueueLimit { changes: 10, bytes: 64 << 20 };
    })
    .await;
    let mut writer = server.client().await;
    apply(&mut writer, &node("first")).await.unwrap();
    let mut stalled = open_watch(&mut server.client().await, &[Kind::Node], None).await;
    assert_eq!(events(&mut stalled, 3).await, ["init 2", "apply 2 node first", "done 2"]);
    let mut large = node("n");
    for n in 0..60 {
        large["metadata"]["annotations"] = json!({"n": n.to_string(), "bulk": "x".repeat(100_000)});
        apply(&mut writer, &large).await.unwrap();
    }
    // It takes what is on its way to it, and is cut with what it has.
    let mut last = 2;
    let status = loop {
        match stalled.message().await {
            Ok(event) => {
                if let Event::Apply(object) = event.unwrap().event.unwrap() {
                    last = object.revision;
                }
            }
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    let compacted = writer.status(StatusRequest::default()).await.unwrap().into_inner().compacted_revision;
    assert!(last < compacted, "{last} {compacted}");
    let mut resumed = watch_from(&server, &[Kind::Node], last).await;
    let Event::Relist(relist) = next(&mut resumed).await else { panic!("no relist") };
    assert_eq!(relist.reason(), Reason::Compacted);
    // And finds everything anew.
    let mut anew = open_watch(&mut server.client().await, &[Kind::Node], None).await;
    assert_eq!(events(&mut anew, 4).await, ["init 62", "apply 2 node first", "apply 62 node n", "done 62"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_and_vanishing_watchers_hold_up_nobody() {
    const CHANGES: u64 = 60;
    let server = Server::start_with(|config| config.queue = QueueLimit { changes: 20, bytes: 64 << 20 }).await;
    let mut writer = server.client().await;
    let mut fast = open_watch(&mut server.client().await, &[Kind::Node], None).await;
    assert_eq!(events(&mut fast, 2).await, ["init 1", "done 1"]);
    // Some never read, some not even their list; some go away in the middle.
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(open_watch(&mut server.client().await, &[Kind::Node], None).await);
    }
    let mut vanishing = Vec::new();
    for n in 0..20 {
        vanishing.push(tokio::spawn({
            let mut client = server.client().await;
            async move {
                let mut watch = open_watch(&mut client, &[Kind::Node], None).await;
                events(&mut watch, 2 + n).await;
            }
        }));
    }
    for revision in 2..2 + CHANGES {
        let mut manifest = node("n");
        manifest["metadata"]["annotations"] = json!({"r": revision.to_string(), "bulk": "x".repeat(100_000)});
        apply(&mut writer, &manifest).await.unwrap();
        let event = tokio::time::timeout(Duration::from_secs(60), events(&mut fast, 1)).await;
        assert_eq!(event.expect("the fast one is held up"), [format!("apply {revision} node n")]);
    }
    for watch in vanishing {
        watch.await.unwrap();
    }
    // Each of the stalled ones resumes from what it got.
    for mut watch in stalled {
        let (mut last, mut is_cut) = (1, false);
        while last < 1 + CHANGES {
            match watch.message().await {
                Ok(Some(WatchEvent { event: Some(Event::Apply(object)) })) => {
                    assert_eq!(object.revision, last + 1);
                    last = object.revision;
                }
                Ok(_) => {}
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted);
                    assert!(!is_cut, "it is cut again, although it reads");
                    is_cut = true;
                    watch = watch_from(&server, &[Kind::Node], last).await;
                }
            }
        }
        assert!(is_cut);
    }
    server.stop().await;
}

#[tokio::test]
async fn have_you_got_revision_n_is_answered_at_once_later_or_by_the_deadline() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    let asked = |revision| StatusRequest { wait_for_revision: revision };
    let at = apply(&mut client, &node("a")).await.unwrap().object.unwrap().revision;
    for reached in [0, 1, at] {
        let answer = client.status(asked(reached)).await.unwrap().into_inner();
        assert_eq!(answer.at.unwrap().revision, at, "{reached}");
    }
    // Nobody writes: the client's deadline is the end.
    let mut request = Request::new(asked(at + 1));
    request.set_timeout(Duration::from_millis(50));
    let refused = client.status(request).await.unwrap_err();
    assert!(matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled), "{refused}");
    // What was written before a restart is there after it.
    server = server.restart().await;
    let mut client = server.client().await;
    assert_eq!(client.status(asked(at)).await.unwrap().into_inner().at.unwrap().revision, at);
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.status(asked(at + 2)).await });
    apply(&mut client, &node("b")).await.unwrap();
    assert!(!waiting.is_finished());
    apply(&mut client, &node("c")).await.unwrap();
    assert!(waiting.await.unwrap().unwrap().into_inner().at.unwrap().revision >= at + 2);
    server.stop().await;
}

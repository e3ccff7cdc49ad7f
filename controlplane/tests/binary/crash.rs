//! `kill -9` of the real server in the middle of concurrent writes.
//!
//! `TOLLGATE_CRASH_ROUNDS=50 cargo test -p tollgate-controlplane --test binary crash` for more rounds than each run has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::process::Process;
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{ApplyRequest, DeleteRequest, Key, Kind, ListRequest, Object, ResumeToken, StatusRequest};
use tollgate_api::v1::{WatchRequest, apply_response::Outcome};
use tollgate_controlplane::client::{Access, Client, connect};
use tonic::Code;

const ROUNDS: usize = 10;
const WRITERS: usize = 16;
/// Names that each writer writes and removes again and again, so that what is allocated is released and taken anew.
const NAMES: u32 = 8;
/// The server is killed some time after its first acknowledgement.
const LONGEST_LIFE: Duration = Duration::from_millis(400);
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a writer does, in its own order.
enum Step {
    /// It is about to write or remove an object; what becomes of it is not known.
    Tries(String),
    /// The object was acknowledged to be like this.
    Has(Object),
    /// The removal was acknowledged, at a revision; none: it was not there.
    HasNot(String, Option<u64>),
}

/// What was acknowledged in all rounds.
#[derive(Default)]
struct Acknowledged {
    objects: BTreeMap<String, Object>,
    /// Written to when the server was killed: either way is right.
    uncertain: BTreeSet<String>,
    /// Every revision that was acknowledged, and for which object.
    revisions: BTreeMap<u64, String>,
}

/// What a watcher has seen that resumes after every crash.
#[derive(Default)]
struct Seen {
    token: Option<ResumeToken>,
    objects: BTreeMap<String, Object>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_kill_9() {
    let rounds = std::env::var("TOLLGATE_CRASH_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Acknowledged::default();
    let mut seen = Seen::default();
    for _ in 0..rounds {
        let server = Process::start(dir.path());
        let (steps, mut stepped) = mpsc::unbounded_channel();
        for writer in 0..WRITERS {
            let client = connect(&server.url, &Access::default()).await.unwrap();
            tokio::spawn(write(client, writer, steps.clone()));
        }
        drop(steps);
        let life = rand::rng().random_range(Duration::ZERO..LONGEST_LIFE);
        let mut end = None;
        loop {
            // The first acknowledgement may take as long as the machine is busy.
            let wait = end.unwrap_or_else(|| tokio::time::Instant::now() + PATIENCE);
            match tokio::time::timeout_at(wait, stepped.recv()).await {
                Ok(step) => {
                    let step = step.expect("the writers gave up");
                    if !matches!(step, Step::Tries(_)) && end.is_none() {
                        end = Some(tokio::time::Instant::now() + life);
                    }
                    acknowledged.take(step);
                }
                Err(_) => {
                    assert!(end.is_some(), "nothing was acknowledged");
                    break;
                }
            }
        }
        server.kill();
        // What was acknowledged before the end, but not yet looked at.
        while let Some(step) = stepped.recv().await {
            acknowledged.take(step);
        }
        let server = Process::start(dir.path());
        check(&mut connect(&server.url, &Access::default()).await.unwrap(), &mut acknowledged, &mut seen).await;
        server.kill();
    }
    println!("{} writes were acknowledged in {rounds} rounds", acknowledged.revisions.len());
    assert!(acknowledged.revisions.len() >= rounds);
}

impl Acknowledged {
    fn take(&mut self, step: Step) {
        let (name, revision) = match &step {
            Step::Tries(name) => {
                self.uncertain.insert(name.clone());
                return;
            }
            Step::Has(object) => (object.key.clone().unwrap().name, Some(object.revision)),
            Step::HasNot(name, revision) => (name.clone(), *revision),
        };
        if let Some(revision) = revision {
            let earlier = self.revisions.insert(revision, name.clone());
            assert_eq!(earlier, None, "revision {revision} was given out again, to {name}");
        }
        self.uncertain.remove(&name);
        match step {
            Step::Has(object) => drop(self.objects.insert(name, object)),
            _ => drop(self.objects.remove(&name)),
        }
    }
}

/// Writes and removes Services until the server is gone.
async fn write(mut client: Client, writer: usize, steps: mpsc::UnboundedSender<Step>) {
    for n in 0_u64.. {
        let (name, is_removal) = {
            let mut random = rand::rng();
            (format!("w{writer}-{}", random.random_range(0..NAMES)), random.random_ratio(1, 3))
        };
        steps.send(Step::Tries(name.clone())).unwrap();
        let step = if is_removal {
            let request = DeleteRequest { key: Some(Key::service("default", &name)), revision: 0 };
            match client.delete(request).await {
                Ok(answer) => Step::HasNot(name, Some(answer.into_inner().revision)),
                Err(status) if status.code() == Code::NotFound => Step::HasNot(name, None),
                Err(_) => return,
            }
        } else {
            let manifest = json!({"apiVersion": "v1", "kind": "Service",
                                  "metadata": {"name": name, "annotations": {"n": n.to_string(), "r": format!("{:x}", rand::random::<u64>())}},
                                  "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
            match client.apply(ApplyRequest { json: manifest.to_string().into_bytes() }).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    assert_ne!(answer.outcome(), Outcome::Unchanged);
                    Step::Has(answer.object.unwrap())
                }
                Err(_) => return,
            }
        };
        steps.send(step).unwrap();
    }
}

async fn check(client: &mut Client, acknowledged: &mut Acknowledged, seen: &mut Seen) {
    let request = ListRequest { kind: Kind::Service.into(), namespace: String::new() };
    let list = client.list(request).await.unwrap().into_inner();
    let stored: BTreeMap<String, Object> =
        list.objects.into_iter().map(|object| (object.key.clone().unwrap().name, object)).collect();
    // A write that was not acknowledged may be there or not.
    for name in std::mem::take(&mut acknowledged.uncertain) {
        match stored.get(&name) {
            Some(object) => drop(acknowledged.objects.insert(name, object.clone())),
            None => drop(acknowledged.objects.remove(&name)),
        }
    }
    assert_eq!(stored, acknowledged.objects);
    let mut held = BTreeSet::new();
    for object in stored.values() {
        let json: Value = serde_json::from_slice(&object.json).unwrap();
        for field in ["/spec/clusterIP", "/spec/ports/0/nodePort"] {
            let value = json.pointer(field).unwrap().to_string();
            assert!(held.insert(value.clone()), "{value} was handed out twice");
        }
    }
    let head = client.status(StatusRequest::default()).await.unwrap().into_inner().at.unwrap();
    let newest = acknowledged.revisions.last_key_value().map_or(0, |(revision, _)| *revision);
    assert!(head.revision >= newest, "the store is at {}, {newest} was acknowledged", head.revision);
    let resume = seen.token.replace(head.clone());
    let mut last = resume.as_ref().map_or(0, |token| token.revision);
    let request = WatchRequest { kinds: vec![Kind::Service.into()], resume, client: "test".into() };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    let mut is_listing = false;
    loop {
        let (name, object, revision) = match watch.message().await.unwrap().unwrap().event.unwrap() {
            Event::Apply(object) => (object.key.clone().unwrap().name, Some(object.clone()), object.revision),
            Event::Delete(deleted) => (deleted.key.unwrap().name, None, deleted.revision),
            Event::InitDone(done) if done.at.as_ref() == Some(&head) => break,
            Event::Progress(progress) if progress.at.as_ref() == Some(&head) => break,
            Event::Init(_) => {
                is_listing = true;
                continue;
            }
            Event::InitDone(_) | Event::Progress(_) => continue,
            other => panic!("{other:?}"),
        };
        assert!(is_listing || revision > last, "{revision} came after {last}");
        last = revision;
        match object {
            Some(object) => drop(seen.objects.insert(name, object)),
            None => drop(seen.objects.remove(&name)),
        }
    }
    assert_eq!(seen.objects, stored);
}

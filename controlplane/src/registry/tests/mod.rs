//! Rules, each with an object that breaks it, through a registry over a real store.

mod allocation;
mod metadata;
mod node;
mod pod;
mod service;
mod service_update;
mod slice;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::store::{Embedded, Retention};

/// What the row is about, what is stored before (nothing where it is null), what is written, and what is found in it.
type Row<'a> = (&'a str, Value, Value, Vec<&'a str>);

fn options() -> Options {
    Options {
        service_cidrs: "10.96.0.0/16,fd00:96::/112".parse().unwrap(),
        node_ports: 30_000..=32_767,
        external_ips: "192.0.2.0/24".parse().unwrap(),
        queue: QueueLimit { changes: 1000, bytes: 1 << 20 },
    }
}

fn open(dir: &TempDir, options: Options) -> (Registry, JoinHandle<()>) {
    Registry::open(Arc::new(Embedded::open(dir.path(), Retention::newest(100)).unwrap()), options).unwrap()
}

/// Writes each row's object. A refused write tells every finding at once and leaves no trace.
async fn check(options: Options, rows: Vec<Row<'_>>) {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = open(&dir, options);
    for (name, before, write, expected) in rows {
        let bytes = |object: &Value| object.to_string().into_bytes();
        let key = if before.is_null() {
            None
        } else {
            let stored = registry.apply(&bytes(&before)).await;
            Some(stored.unwrap_or_else(|error| panic!("{name}, before: {error}")).record.key.clone())
        };
        let snapshot = registry.feed().snapshot();
        let key = match registry.apply(&bytes(&write)).await {
            Ok(applied) => {
                assert_eq!(expected, [""; 0], "{name}: was accepted");
                Some(applied.record.key.clone())
            }
            Err(Error::Invalid(invalid)) => {
                let found: Vec<String> = invalid.findings.iter().map(ToString::to_string).collect();
                assert_eq!(found, expected, "{name}");
                let now = registry.feed().snapshot();
                assert_eq!((now.position, now.objects), (snapshot.position, snapshot.objects), "{name}");
                key
            }
            Err(other) => panic!("{name}: {other}"),
        };
        if let Some(key) = key {
            registry.delete(key, 0).await.unwrap();
        }
    }
}

/// An object with changes to its top-level fields; those that are objects on both sides are merged.
fn merge(mut object: Value, changes: Value) -> Value {
    let (Some(fields), Value::Object(changes)) = (object.as_object_mut(), changes) else { panic!("no objects") };
    for (field, value) in changes {
        let old = fields.remove(&field).filter(|old| old.is_object() && value.is_object());
        let value = if let Some(old) = old { merge(old, value) } else { value };
        fields.insert(field, value);
    }
    object
}

/// A Service over port 80.
fn service(spec: Value) -> Value {
    let base =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    merge(base, json!({"spec": spec}))
}

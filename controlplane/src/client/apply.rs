//! `apply -f`: makes or replaces what manifests describe.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures::stream::{self, StreamExt};
use serde_json::Value;
use tollgate_api::v1::apply_response::Outcome;
use tollgate_api::v1::{ApplyRequest, Key, Kind};
use tonic::{Code, Status};

use super::documents::{self, Document};
use super::{Client, Error, Output, reason_of, slashed};

/// How many writes are on their way at once: the server commits those that wait together.
const AT_ONCE: usize = 64;

/// An object on its way, or why it will not go.
struct Item {
    place: String,
    object: Result<(Key, Value), String>,
}

/// Applies every object in the sources; `namespace` is for those that name none. One that fails does not stop the
/// others.
pub async fn apply(
    client: &Client,
    sources: &[PathBuf],
    namespace: Option<&str>,
    output: &mut Output<'_>,
) -> Result<bool, Error> {
    let documents = documents::read(sources)?;
    if documents.is_empty() {
        return Err(Error::Usage("there is no object in what -f names".to_owned()));
    }
    let items = documents.into_iter().map(|Document { place, content }| Item {
        place,
        object: content.and_then(|value| documents::address(value, namespace)),
    });
    let mut is_done = true;
    for group in groups(items) {
        let answers = group.into_iter().map(|item| send(client.clone(), item));
        let mut answers = stream::iter(answers).buffered(AT_ONCE);
        while let Some((place, answer)) = answers.next().await {
            match answer {
                Ok(line) => writeln!(output.results, "{line}")?,
                Err(Failure::Refused(reason)) => {
                    is_done = false;
                    writeln!(output.complaints, "error: {place}: {reason}")?;
                }
                // The rest would fail in the same way.
                Err(Failure::Broken(key, status)) => return Err(Error::call(format!("apply {key}"))(*status)),
            }
        }
    }
    Ok(is_done)
}

enum Failure {
    Refused(String),
    Broken(Key, Box<Status>),
}

async fn send(mut client: Client, item: Item) -> (String, Result<String, Failure>) {
    let (key, object) = match item.object {
        Ok(object) => object,
        Err(reason) => return (item.place, Err(Failure::Refused(reason))),
    };
    let answer = client.apply(ApplyRequest { json: object.to_string().into_bytes() }).await;
    let line = match answer {
        Ok(answer) => Ok(format!("{} {}", slashed(&key), outcome_word(answer.into_inner().outcome()))),
        Err(status) if status.code() == Code::Unavailable => Err(Failure::Broken(key, Box::new(status))),
        Err(status) => Err(Failure::Refused(reason_of(&status))),
    };
    (item.place, line)
}

/// Writes that may overtake each other form a group: a Namespace goes before what is in it, and of two documents about
/// one object the later one wins.
fn groups(items: impl Iterator<Item = Item>) -> Vec<Vec<Item>> {
    let mut groups: Vec<Vec<Item>> = vec![Vec::new()];
    let mut keys = BTreeSet::new();
    for item in items {
        let key = item.object.as_ref().ok().map(|(key, _)| key.clone());
        let is_namespace = key.as_ref().is_some_and(|key| key.kind() == Kind::Namespace);
        let is_repeated = key.is_some_and(|key| !keys.insert(key));
        if is_namespace || is_repeated {
            groups.push(Vec::new());
        }
        if let Some(group) = groups.last_mut() {
            group.push(item);
        }
        if is_namespace {
            groups.push(Vec::new());
        }
    }
    groups
}

fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Created => "created",
        Outcome::Configured => "configured",
        Outcome::Unchanged => "unchanged",
        Outcome::Unspecified => "applied",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_and_a_repeated_object_wait_for_what_came_before() {
        let item = |key: Key| Item { place: String::new(), object: Ok((key, Value::Null)) };
        let keys = [
            Key::node("a"),
            Key::namespace("n"),
            Key::service("n", "s"),
            Key::node("b"),
            Key::node("a"),
            Key::node("c"),
        ];
        let sizes: Vec<usize> = groups(keys.into_iter().map(item)).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 1, 2, 2]);
    }
}

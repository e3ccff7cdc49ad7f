//! The verbs of the specification, a file each.

use std::io;

use serde_json::{Value, json};

use crate::conf::version_of;
use crate::env::{Variables, Verb};
use crate::error::Error;
use crate::version::SpecVersion;

mod add;
mod check;
mod del;
mod detach;
mod gc;
mod plan;
mod status;
mod version;

/// What the runtime is answered.
#[derive(Debug)]
pub struct Answer {
    /// What goes to standard output.
    pub text: Option<String>,
    /// Whether it went well.
    pub is_success: bool,
}

/// Does one call.
pub fn call(variables: &impl Variables, stdin: io::Result<Vec<u8>>) -> Answer {
    let version = stdin.as_deref().ok().and_then(version_of).unwrap_or(SpecVersion::NEWEST);
    match stdin.map_err(|cause| Error::file("read", "/dev/stdin", cause)).and_then(|stdin| dispatch(variables, &stdin))
    {
        Ok(value) => Answer { text: value.map(|value| value.to_string()), is_success: true },
        Err(error) => Answer { text: Some(json!(error.render(version)).to_string()), is_success: false },
    }
}

fn dispatch(variables: &impl Variables, stdin: &[u8]) -> Result<Option<Value>, Error> {
    match Verb::read(variables)? {
        Verb::Add => add::add(variables, stdin).map(Some),
        Verb::Del => del::del(variables, stdin).map(|()| None),
        Verb::Check => check::check(variables, stdin).map(|()| None),
        Verb::Gc => gc::gc(variables, stdin).map(|()| None),
        Verb::Status => status::status(variables, stdin).map(|()| None),
        Verb::Version => Ok(Some(version::version(stdin))),
    }
}

/// Fails where a configuration's version is older than the verb.
fn needs(verb: Verb, needs: SpecVersion, found: SpecVersion) -> Result<(), Error> {
    if found >= needs { Ok(()) } else { Err(Error::VerbTooNew { verb: verb.as_str(), needs, found }) }
}

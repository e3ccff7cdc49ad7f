//! Another plugin that gives out addresses, called as the specification's section 4 says: the same environment, the same
//! configuration, another binary.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;

use crate::conf::PluginName;
use crate::env::{Attachment, Verb};
use crate::error::Error;
use crate::result::NetResult;
use crate::version::SpecVersion;

/// An IPAM plugin.
#[derive(Clone, Debug)]
pub struct Plugin<'a> {
    /// Its name.
    pub name: &'a PluginName,
    /// Where it is looked for.
    pub dirs: &'a [PathBuf],
    /// The configuration, as it was on standard input.
    pub conf: &'a [u8],
}

#[derive(Deserialize)]
struct RawError {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Plugin<'_> {
    /// Its binary.
    pub fn program(&self) -> Result<PathBuf, Error> {
        let found = self.dirs.iter().map(|dir| dir.join(self.name.as_str())).find(|path| path.is_file());
        found.ok_or_else(|| Error::Delegate {
            plugin: self.name.as_str().into(),
            problem: {
                let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
                format!("there is no such program in CNI_PATH ({})", dirs.join(":"))
            },
            verb: "looking for it",
            code: None,
        })
    }

    /// Asks for addresses.
    pub fn add(&self) -> Result<NetResult, Error> {
        let stdout = self.run(Verb::Add, None)?;
        let value: Value = serde_json::from_slice(&stdout)
            .map_err(|error| self.failed(Verb::Add, format!("its answer is no JSON: {error}")))?;
        NetResult::parse(&value, "its answer").map_err(|error| self.failed(Verb::Add, error.to_string()))
    }

    /// Gives back the addresses of an attachment; of the one that this call is about, if none is given.
    pub fn del(&self, attachment: Option<&Attachment>) -> Result<(), Error> {
        self.run(Verb::Del, attachment).map(drop)
    }

    /// Asks whether it has the addresses for this attachment.
    pub fn check(&self) -> Result<(), Error> {
        self.run(Verb::Check, None).map(drop)
    }

    /// Calls a verb that 1.1.0 brought, if the plugin is young enough to know it.
    pub fn if_known(&self, verb: Verb) -> Result<(), Error> {
        let versions = self.run(Verb::Version, None)?;
        let versions: Value = serde_json::from_slice(&versions).unwrap_or_default();
        let known = versions["supportedVersions"].as_array();
        let is_known = known.is_some_and(|all| all.iter().any(|version| version == SpecVersion::V1_1_0.as_str()));
        if is_known { self.run(verb, None).map(drop) } else { Ok(()) }
    }

    fn run(&self, verb: Verb, attachment: Option<&Attachment>) -> Result<Vec<u8>, Error> {
        let program = self.program()?;
        let failed = |problem: String| self.failed(verb, problem);
        let mut command = Command::new(&program);
        command.env("CNI_COMMAND", verb.as_str()).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(Attachment { container_id, ifname }) = attachment {
            command.env("CNI_CONTAINERID", container_id).env("CNI_IFNAME", ifname).env("CNI_NETNS", "");
        }
        let mut child =
            command.spawn().map_err(|error| failed(format!("cannot run {}: {error}", program.display())))?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(self.conf) {
                // It may not want to read.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    return Err(failed(format!("cannot hand it the configuration: {error}")));
                }
                _ => {}
            }
        }
        let output = child.wait_with_output().map_err(|error| failed(format!("cannot wait for it: {error}")))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        match serde_json::from_slice::<RawError>(&output.stdout) {
            Ok(RawError { code, msg, details }) => Err(Error::Delegate {
                plugin: self.name.as_str().into(),
                verb: verb.as_str(),
                problem: if details.is_empty() { msg } else { format!("{msg}; {details}") },
                code: Some(code),
            }),
            Err(_) => Err(failed(format!("it ended with {}", output.status))),
        }
    }

    fn failed(&self, verb: Verb, problem: String) -> Error {
        Error::Delegate { plugin: self.name.as_str().into(), verb: verb.as_str(), problem, code: None }
    }
}

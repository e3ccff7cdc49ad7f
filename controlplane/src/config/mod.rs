//! How `serve` is told what to do: flags and the config file, parsed and validated once.
//!
//! Both have the same keys; a flag wins over the file. What comes out is a [`Config`] in which nothing is optional that
//! need not be.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::registry::{ExternalIpCidrs, ServiceCidrs};
use crate::server::{self, Security, ServerFiles};

/// Everything that `serve` is told, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What is served, and how.
    pub server: server::Config,
}

/// The flags, and the keys of the config file: the same words for both.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Address and port to listen on; port 0 takes a free one, which the log names [default: 127.0.0.1:7440].
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,

    /// The server's certificate, PEM: its own first, then those between it and its CA. With it the listener speaks TLS.
    ///
    /// This file, the key, the client CAs and the tokens are read again when they change, within 5 s or at SIGHUP. What
    /// can't be used is named in the log, and the earlier ones stay in use.
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,

    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,

    /// The CAs whose certificates say who a client is, PEM: the common name is the user, the organizations are the groups.
    ///
    /// Group system:masters may do everything (operators). User system:node:NAME in group system:nodes may read Services,
    /// EndpointSlices and Nodes and write the Node NAME (proxies). Group tollgate:viewers may read everything. Who has no
    /// identity is refused everything but gRPC health checks.
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,

    /// Bearer tokens, CSV: token,user,uid,"group1,group2" in each line. The groups are as with --client-ca-file.
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,

    /// Serve whoever reaches the listener, without asking who it is: anyone there can read every object, take over every
    /// Service's traffic, and, without TLS, read what others send.
    ///
    /// A listener on loopback does so without this flag. Any other needs --tls-cert-file with --client-ca-file or
    /// --token-auth-file, or this flag: only where no one else reaches the address, as in a network of its own.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(deserialize_with = "boolean")]
    pub insecure: Option<bool>,

    /// Directory of the store; made if it does not exist. There is no default.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where ClusterIPs come from: one range, or one of each family. The first is the default family [default:
    /// 10.96.0.0/16,fd00:96::/112].
    #[arg(long, value_name = "CIDR[,CIDR]")]
    #[serde(deserialize_with = "list")]
    pub service_cidr: Option<ServiceCidrs>,

    /// Where node ports come from [default: 30000-32767].
    #[arg(long, value_name = "FIRST-LAST")]
    #[serde(deserialize_with = "text")]
    pub node_port_range: Option<PortRange>,

    /// Where Services may take external IPs from; without it they may have none.
    ///
    /// Whoever may write a Service draws to its endpoints what the nodes send to its external IPs, whosever addresses
    /// these are (CVE-2020-8554). So give only ranges that are yours to hand out. External IPs that a Service has
    /// already stay accepted.
    #[arg(long, value_name = "CIDR[,CIDR...]")]
    #[serde(deserialize_with = "list")]
    pub allow_external_ips: Option<ExternalIpCidrs>,

    /// How many changes to keep: a watch that lost its connection resumes if it missed no more than that [default: 100000].
    #[arg(long, value_name = "CHANGES")]
    #[serde(deserialize_with = "number")]
    pub history: Option<u64>,

    /// How long to keep changes; 0 for as long as the other limits allow [default: 24h].
    #[arg(long, value_name = "DURATION")]
    pub history_age: Option<SignedDuration>,

    /// How much of changes to keep: the size of their objects as JSON; 0 for as much as the other limits allow [default:
    /// 256MiB].
    #[arg(long, value_name = "SIZE")]
    pub history_size: Option<ByteSize>,

    /// Where /metrics is served; empty for nowhere [default: 127.0.0.1:7441].
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,

    /// How long a watch stays silent before it tells where it stands.
    #[arg(long, value_name = "MILLISECONDS", hide = true)]
    #[serde(deserialize_with = "number")]
    pub progress_interval: Option<u64>,
}

/// Node ports, written `30000-32767`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(RangeInclusive<u16>);

/// Text that is no range of ports.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("give it as 30000-32767")]
pub struct InvalidPortRange;

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config file can't be read.
    #[error("cannot read the config file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The config file has a key or a value that means nothing.
    #[error("cannot use the config file {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A value means nothing.
    #[error("{key}: {value}: {reason}")]
    Value {
        /// The flag without its dashes, or the key in the file.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A value that has no default is missing.
    #[error("{key}: is required: give --{key}, or {key} in the config file")]
    Missing {
        /// The flag without its dashes, or the key in the file.
        key: &'static str,
    },
}

// === impl Config ===

impl Config {
    /// Reads the config file, if there is one, lays the flags over it, and validates the whole.
    ///
    /// # Errors
    /// When the file can't be read or a value can't be used; the error names the key.
    pub fn load(flags: Settings, file: Option<&Path>) -> Result<Self, Error> {
        let file = file.map(Settings::read).transpose()?.unwrap_or_default();
        flags.over(file).validate()
    }
}

// === impl Settings ===

impl Settings {
    fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        // A file of comments alone is no mapping to YAML, but says as much as an empty one.
        serde_saphyr::from_str::<Option<Self>>(&text).map(Option::unwrap_or_default).map_err(|error| {
            // The file's reader speaks of its own options there, which nobody can set.
            let reason = error.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
            Error::File { path: path.into(), reason: reason.trim_start_matches("error: ").to_owned() }
        })
    }

    /// These settings, and those of `below` where these say nothing.
    fn over(self, below: Self) -> Self {
        Settings {
            listen: self.listen.or(below.listen),
            tls_cert_file: self.tls_cert_file.or(below.tls_cert_file),
            tls_private_key_file: self.tls_private_key_file.or(below.tls_private_key_file),
            client_ca_file: self.client_ca_file.or(below.client_ca_file),
            token_auth_file: self.token_auth_file.or(below.token_auth_file),
            insecure: self.insecure.or(below.insecure),
            data_dir: self.data_dir.or(below.data_dir),
            service_cidr: self.service_cidr.or(below.service_cidr),
            node_port_range: self.node_port_range.or(below.node_port_range),
            allow_external_ips: self.allow_external_ips.or(below.allow_external_ips),
            history: self.history.or(below.history),
            history_age: self.history_age.or(below.history_age),
            history_size: self.history_size.or(below.history_size),
            metrics_bind_address: self.metrics_bind_address.or(below.metrics_bind_address),
            progress_interval: self.progress_interval.or(below.progress_interval),
        }
    }

    fn validate(self) -> Result<Config, Error> {
        let data_dir = self.data_dir.ok_or(Error::Missing { key: "data-dir" })?;
        let mut server = server::Config::new(data_dir, self.service_cidr.unwrap_or_default());
        if let Some(PortRange(ports)) = self.node_port_range {
            server.node_ports = ports;
        }
        let tls = match (self.tls_cert_file, self.tls_private_key_file) {
            (Some(certificate), Some(key)) => Some(ServerFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => return Err(Error::Missing { key: "tls-private-key-file" }),
            (None, Some(_)) => return Err(Error::Missing { key: "tls-cert-file" }),
        };
        server.security = Security {
            tls,
            client_ca_file: self.client_ca_file,
            token_auth_file: self.token_auth_file,
            insecure: self.insecure.unwrap_or(false),
        };
        server.external_ips = self.allow_external_ips.unwrap_or_default();
        let retention = &mut server.retention;
        retention.changes = at_least_one("history", self.history, retention.changes)?;
        if let Some(age) = self.history_age {
            let given = Duration::try_from(age).map_err(|_| Error::Value {
                key: "history-age",
                value: format!("{age:#}"),
                reason: "it must not be negative",
            })?;
            retention.age = Some(given).filter(|age| !age.is_zero());
        }
        if let Some(ByteSize(bytes)) = self.history_size {
            retention.bytes = Some(bytes).filter(|bytes| *bytes > 0);
        }
        server.metrics_bind_address =
            bind_address("metrics-bind-address", self.metrics_bind_address, "127.0.0.1:7441")?;
        let progress_interval = at_least_one("progress-interval", self.progress_interval, 10_000)?;
        server.progress_interval = Duration::from_millis(progress_interval);
        Ok(Config { listen: self.listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 7440))), server })
    }
}

// === impl PortRange ===

impl FromStr for PortRange {
    type Err = InvalidPortRange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
        range.filter(|range| *range.start() > 0 && !range.is_empty()).map(PortRange).ok_or(InvalidPortRange)
    }
}

/// Empty text stands for no address.
fn bind_address(key: &'static str, given: Option<String>, default: &str) -> Result<Option<SocketAddr>, Error> {
    let value = given.unwrap_or_else(|| default.to_owned());
    if value.is_empty() {
        return Ok(None);
    }
    match value.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(Error::Value { key, value: format!("{value:?}"), reason: "give it as IP:PORT, or empty" }),
    }
}

fn at_least_one(key: &'static str, given: Option<u64>, default: u64) -> Result<u64, Error> {
    match given.unwrap_or(default) {
        0 => Err(Error::Value { key, value: "0".to_owned(), reason: "it must be at least 1" }),
        given => Ok(given),
    }
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    u64::deserialize(deserializer).map(Some).map_err(|_| D::Error::custom("give it as a number, not below 0"))
}

fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    bool::deserialize(deserializer).map(Some).map_err(|_| D::Error::custom("give it as true or false"))
}

/// A value that is written as text.
fn text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<Option<T>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
}

/// A value of several parts: a list, or, as with the flag, text with commas.
fn list<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Text(String),
        List(Vec<String>),
    }
    let text = match Given::deserialize(deserializer)? {
        Given::Text(text) => text,
        Given::List(parts) => parts.join(","),
    };
    text.parse().map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests;

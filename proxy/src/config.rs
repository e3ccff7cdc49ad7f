//! Configuration: flags and the config file, parsed and validated once.
//!
//! Both have the same keys; a flag wins over the file. What comes out is a [`Config`] in which nothing is optional that need
//! not be.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tollgate_api::connect::Access;
use tollgate_model::name::IpFamily;
use tollgate_model::store::{NodePortAddresses, StoreConfig};
use tonic::transport::Uri;

use crate::backend::ebpf::{DEFAULT_BPF_ROOT, EbpfConfig};
use crate::backend::{DetectLocal, Mode, NodeConfig, ipvs};

/// Everything the daemon is told, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// The mechanism that balances Services.
    pub mode: Mode,
    /// Where the bundled control plane listens.
    pub control_plane: Uri,
    /// By what this proxy knows it, and shows who it is.
    pub access: Access,
    /// This node's name.
    pub node_name: String,
    /// This node's primary addresses, at most one of each family; empty: taken from the interfaces.
    pub node_ips: Vec<IpAddr>,
    /// This node's zone, for as long as its Node object has no zone label.
    pub zone: Option<String>,
    /// Whether to make the Node object where it is missing.
    pub register_node: bool,
    /// Which of the node's addresses answer NodePorts; empty: the primary ones.
    pub nodeport_addresses: Vec<IpNet>,
    /// External IPs outside these are ignored; empty: all are honoured.
    pub external_ip_cidrs: Vec<IpNet>,
    /// What the backend needs to know about the node.
    pub node: NodeConfig,
    /// Of how many Service ports `/metrics` tells by themselves.
    pub metrics_services: usize,
    /// How often the kernel is compared with what it should hold.
    pub sync_period: Duration,
    /// Where `/healthz` and `/livez` are served; `None`: nowhere.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is served; `None`: nowhere.
    pub metrics_bind_address: Option<SocketAddr>,
}

/// What tells local pods' traffic, in kube-proxy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum DetectLocalMode {
    /// Its source is in --cluster-cidr.
    #[value(name = "ClusterCIDR")]
    #[serde(rename = "ClusterCIDR")]
    ClusterCidr,
    /// Its source is in the pod CIDRs of this node's Node object.
    #[value(name = "NodeCIDR")]
    #[serde(rename = "NodeCIDR")]
    NodeCidr,
    /// It comes in through --pod-bridge-interface.
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// It comes in through an interface whose name begins with --pod-interface-name-prefix.
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// The flags, and the keys of the config file: the same words for both.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// How the kernel balances Services.
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_mode: Option<Mode>,

    /// Where the bundled control plane listens [default: http://127.0.0.1:7440].
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<String>,

    /// With https://, the CA that the control plane's certificate is to come from, PEM.
    ///
    /// This file and the three below are read at each connection, so that they can be replaced while the proxy runs.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<PathBuf>,

    /// The certificate that says who this proxy is, PEM: user system:node:NAME in group system:nodes, as
    /// `tollgate-controlplane certs --node NAME` makes it.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,

    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,

    /// A file with the bearer token that says who this proxy is, where that is not a certificate.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,

    /// This node's name [default: the host name].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,

    /// This node's primary addresses, at most one of each family [default: those of the interface that the default route
    /// uses].
    #[arg(long, value_name = "IP,..", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_ip: Option<Vec<IpAddr>>,

    /// This node's zone, where its Node object has no label topology.kubernetes.io/zone.
    #[arg(long, value_name = "ZONE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,

    /// Make this node's Node object where it is missing: with the bundled control plane there is no kubelet that does
    /// [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register_node: Option<bool>,

    /// What tells traffic from local pods. ClusterIP traffic from elsewhere is masqueraded, so that answers come back through
    /// this node [default: ClusterCIDR if --cluster-cidr is given; else nothing does, and none is].
    #[arg(long, value_enum, value_name = "MODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detect_local_mode: Option<DetectLocalMode>,

    /// Where the pods of the whole cluster have their addresses, for --detect-local-mode ClusterCIDR.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_cidr: Option<Vec<IpNet>>,

    /// The bridge that local pods are attached to, for --detect-local-mode BridgeInterface.
    #[arg(long, value_name = "INTERFACE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_bridge_interface: Option<String>,

    /// How the names of local pods' interfaces begin, for --detect-local-mode InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_interface_name_prefix: Option<String>,

    /// Where ClusterIPs are handed out. Traffic to an address in it that no Service holds is dropped, so that a client that
    /// is quicker than this node succeeds at its first retransmission.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_cidr: Option<Vec<IpNet>>,

    /// Which of the node's own addresses answer NodePorts [default: the primary address of each family].
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodeport_addresses: Option<Vec<IpNet>>,

    /// Ignore external IPs of Services outside these ranges (CVE-2020-8554) [default: honour all].
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_ip_cidrs: Option<Vec<IpNet>>,

    /// Masquerade all traffic to ClusterIPs, that of local pods too.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade_all: Option<bool>,

    /// Which bit of packets' marks asks to masquerade them, 0 to 31. No other program on this node may use it
    /// [default: 14, as in kube-proxy].
    #[arg(long, value_name = "BIT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade_bit: Option<u8>,

    /// The cgroup v2 directory whose sockets the mode ebpf sees, with all below it; in a container, a mount of the host's
    /// [default: the root of the cgroup2 file system that is mounted].
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,

    /// Where the mode ebpf pins its maps and links, on a bpf file system; other modes look there for what it has left
    /// [default: /sys/fs/bpf/tollgate].
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf_root: Option<PathBuf>,

    /// In mode ebpf, close TCP connections to endpoints that no longer serve, not even while terminating. UDP sockets
    /// connected to such an endpoint are always closed, so that their owners connect anew.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_stale_connections: Option<bool>,

    /// In mode ebpf, of how many Service ports /metrics has series of their own: those with the most connections. The rest is
    /// told as a sum [default: 1000].
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_services: Option<usize>,

    /// How often the kernel is compared with what it should hold, and repaired [default: 30s].
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_period: Option<SignedDuration>,

    /// Where /healthz and /livez are served; empty for nowhere [default: 0.0.0.0:10256].
    #[arg(long, value_name = "IP:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthz_bind_address: Option<String>,

    /// Where /metrics is served; empty for nowhere [default: 127.0.0.1:10249].
    #[arg(long, value_name = "IP:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_bind_address: Option<String>,
}

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config file can't be read.
    #[error("cannot read the config file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
    /// The config file has a key or a value that means nothing.
    #[error("cannot use the config file {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A value means nothing.
    #[error("{key}: {value:?}: {reason}")]
    Value {
        /// The flag without its dashes, or the key in the file.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The control plane's address and the files for it do not go together.
    #[error("control-plane: {0}")]
    Access(#[from] tollgate_api::connect::Invalid),
    /// The host has no name to take for the node's.
    #[error("cannot read the host's name; give the node's with --node-name")]
    HostName(#[source] nix::Error),
}

impl Config {
    /// Reads the config file, if there is one, lays the flags over it, and validates the whole.
    ///
    /// # Errors
    /// When the file can't be read or a value can't be used; the error names the key and the value.
    pub fn load(flags: &Settings, file: Option<&Path>) -> Result<Self, Error> {
        let file = file.map(Settings::read).transpose()?.unwrap_or_default();
        flags.over(&file).validate()
    }

    /// What the model's store is told. Where this daemon makes the Node object, there is no kubelet that keeps it up to date.
    #[must_use]
    pub fn store_config(&self) -> StoreConfig {
        let within = |cidrs: &Vec<IpNet>| (!cidrs.is_empty()).then(|| cidrs.clone());
        StoreConfig {
            node_name: self.node_name.as_str().into(),
            zone: self.zone.as_deref().map(Into::into),
            node_ips: self.node_ips.clone(),
            node_object_ages: self.register_node,
            node_port_addresses: within(&self.nodeport_addresses)
                .map_or(NodePortAddresses::Primary, NodePortAddresses::Within),
            external_ip_cidrs: within(&self.external_ip_cidrs),
        }
    }
}

impl Settings {
    fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|cause| Error::Read { path: path.into(), cause })?;
        serde_saphyr::from_str(&text).map_err(|error| Error::File { path: path.into(), reason: error.to_string() })
    }

    /// These settings, and those of `below` where these say nothing.
    fn over(&self, below: &Self) -> Self {
        Self {
            proxy_mode: self.proxy_mode.or(below.proxy_mode),
            control_plane: self.control_plane.clone().or_else(|| below.control_plane.clone()),
            certificate_authority: self.certificate_authority.clone().or_else(|| below.certificate_authority.clone()),
            client_certificate: self.client_certificate.clone().or_else(|| below.client_certificate.clone()),
            client_key: self.client_key.clone().or_else(|| below.client_key.clone()),
            token_file: self.token_file.clone().or_else(|| below.token_file.clone()),
            node_name: self.node_name.clone().or_else(|| below.node_name.clone()),
            node_ip: self.node_ip.clone().or_else(|| below.node_ip.clone()),
            zone: self.zone.clone().or_else(|| below.zone.clone()),
            register_node: self.register_node.or(below.register_node),
            detect_local_mode: self.detect_local_mode.or(below.detect_local_mode),
            pod_bridge_interface: self.pod_bridge_interface.clone().or_else(|| below.pod_bridge_interface.clone()),
            pod_interface_name_prefix: self
                .pod_interface_name_prefix
                .clone()
                .or_else(|| below.pod_interface_name_prefix.clone()),
            cluster_cidr: self.cluster_cidr.clone().or_else(|| below.cluster_cidr.clone()),
            service_cidr: self.service_cidr.clone().or_else(|| below.service_cidr.clone()),
            nodeport_addresses: self.nodeport_addresses.clone().or_else(|| below.nodeport_addresses.clone()),
            external_ip_cidrs: self.external_ip_cidrs.clone().or_else(|| below.external_ip_cidrs.clone()),
            masquerade_all: self.masquerade_all.or(below.masquerade_all),
            masquerade_bit: self.masquerade_bit.or(below.masquerade_bit),
            cgroup: self.cgroup.clone().or_else(|| below.cgroup.clone()),
            bpf_root: self.bpf_root.clone().or_else(|| below.bpf_root.clone()),
            close_stale_connections: self.close_stale_connections.or(below.close_stale_connections),
            metrics_services: self.metrics_services.or(below.metrics_services),
            sync_period: self.sync_period.or(below.sync_period),
            healthz_bind_address: self.healthz_bind_address.clone().or_else(|| below.healthz_bind_address.clone()),
            metrics_bind_address: self.metrics_bind_address.clone().or_else(|| below.metrics_bind_address.clone()),
        }
    }

    fn validate(self) -> Result<Config, Error> {
        let node_ips = self.node_ip.unwrap_or_default();
        one_of_each_family("node-ip", &node_ips)?;
        let interfaces = (self.pod_bridge_interface, self.pod_interface_name_prefix);
        let detect_local = detect_local(self.detect_local_mode, trimmed(self.cluster_cidr), interfaces)?;
        let control_plane = control_plane(self.control_plane.as_deref().unwrap_or("http://127.0.0.1:7440"))?;
        let access = Access {
            certificate_authority: self.certificate_authority,
            client_certificate: self.client_certificate,
            client_key: self.client_key,
            token_file: self.token_file,
        };
        access.check(&control_plane)?;
        Ok(Config {
            mode: self.proxy_mode.unwrap_or(Mode::Nftables),
            control_plane,
            access,
            node_name: self.node_name.map_or_else(host_name, node_name)?,
            node_ips,
            zone: self.zone,
            register_node: self.register_node.unwrap_or(true),
            nodeport_addresses: trimmed(self.nodeport_addresses),
            external_ip_cidrs: trimmed(self.external_ip_cidrs),
            node: NodeConfig {
                families: IpFamily::ALL.to_vec(),
                detect_local,
                service_cidrs: trimmed(self.service_cidr),
                masquerade_all: self.masquerade_all.unwrap_or(false),
                masquerade_mark: masquerade_mark(self.masquerade_bit)?,
                ebpf: EbpfConfig {
                    cgroup: self.cgroup,
                    bpf_root: self.bpf_root.unwrap_or_else(|| DEFAULT_BPF_ROOT.into()),
                    close_stale_connections: self.close_stale_connections.unwrap_or(false),
                },
                ipvs: ipvs::Config::default(),
            },
            metrics_services: self.metrics_services.unwrap_or(1000),
            sync_period: sync_period(self.sync_period)?,
            healthz_bind_address: bind_address("healthz-bind-address", self.healthz_bind_address, "0.0.0.0:10256")?,
            metrics_bind_address: bind_address("metrics-bind-address", self.metrics_bind_address, "127.0.0.1:10249")?,
        })
    }
}

fn control_plane(url: &str) -> Result<Uri, Error> {
    let invalid = |reason: String| Error::Value { key: "control-plane", value: url.to_owned(), reason };
    let uri: Uri = url.parse().map_err(|error| invalid(format!("not a URL: {error}")))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        (Some(scheme), Some(_)) => Err(invalid(format!("the scheme is {scheme}, it must be https or http"))),
        _ => Err(invalid("it must look like https://HOST:PORT or http://HOST:PORT".to_owned())),
    }
}

fn host_name() -> Result<String, Error> {
    let name = nix::unistd::gethostname().map_err(Error::HostName)?;
    node_name(name.to_string_lossy().to_lowercase())
}

/// A Node's name is a DNS subdomain (RFC 1123), as in the Kubernetes API.
fn node_name(name: String) -> Result<String, Error> {
    let label_is_valid = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if name.len() <= 253 && name.split('.').all(label_is_valid) {
        return Ok(name);
    }
    Err(Error::Value {
        key: "node-name",
        value: name,
        reason:
            "it must be at most 253 lower-case letters, digits, dashes and dots, and begin and end with a letter or \
                 digit"
                .to_owned(),
    })
}

fn one_of_each_family(key: &'static str, ips: &[IpAddr]) -> Result<(), Error> {
    for (index, ip) in ips.iter().enumerate() {
        let value = ip.to_string();
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            return Err(Error::Value { key, value, reason: "not an address that others can reach".to_owned() });
        }
        if ips[..index].iter().any(|other| IpFamily::from(*other) == IpFamily::from(*ip)) {
            return Err(Error::Value { key, value, reason: format!("a second {} address", IpFamily::from(*ip)) });
        }
    }
    Ok(())
}

fn trimmed(cidrs: Option<Vec<IpNet>>) -> Vec<IpNet> {
    cidrs.unwrap_or_default().iter().map(IpNet::trunc).collect()
}

/// The mode with its value. Cluster CIDRs are fine with any mode, because an operator may know them for other reasons.
fn detect_local(
    mode: Option<DetectLocalMode>,
    cluster_cidrs: Vec<IpNet>,
    (bridge, prefix): (Option<String>, Option<String>),
) -> Result<DetectLocal, Error> {
    const MODE: &str = "detect-local-mode";
    let missing = |mode: &str, key: &str| Error::Value {
        key: MODE,
        value: mode.to_owned(),
        reason: format!("it needs {key}, which is not given"),
    };
    for (key, value, wanted, name) in [
        ("pod-bridge-interface", &bridge, DetectLocalMode::BridgeInterface, "BridgeInterface"),
        ("pod-interface-name-prefix", &prefix, DetectLocalMode::InterfaceNamePrefix, "InterfaceNamePrefix"),
    ] {
        let Some(value) = value else { continue };
        interface_name(key, value)?;
        if mode != Some(wanted) {
            let reason = format!("it is used with {MODE} {name} alone, which is not given");
            return Err(Error::Value { key, value: value.clone(), reason });
        }
    }
    match mode {
        None if cluster_cidrs.is_empty() => Ok(DetectLocal::Nothing),
        None => Ok(DetectLocal::ClusterCidr(cluster_cidrs)),
        Some(DetectLocalMode::ClusterCidr) if cluster_cidrs.is_empty() => Err(missing("ClusterCIDR", "cluster-cidr")),
        Some(DetectLocalMode::ClusterCidr) => Ok(DetectLocal::ClusterCidr(cluster_cidrs)),
        Some(DetectLocalMode::NodeCidr) => Ok(DetectLocal::NodeCidr),
        Some(DetectLocalMode::BridgeInterface) => {
            bridge.map(DetectLocal::BridgeInterface).ok_or_else(|| missing("BridgeInterface", "pod-bridge-interface"))
        }
        Some(DetectLocalMode::InterfaceNamePrefix) => prefix
            .map(DetectLocal::InterfaceNamePrefix)
            .ok_or_else(|| missing("InterfaceNamePrefix", "pod-interface-name-prefix")),
    }
}

/// A name that an interface can have (`dev_valid_name` in net/core/dev.c), and that means itself in a rule: nft takes `*` at
/// the end for a wildcard, iptables `+`.
fn interface_name(key: &'static str, name: &str) -> Result<(), Error> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/:\"\\*+".contains(&byte);
    if (1..=15).contains(&name.len()) && name.bytes().all(is_plain) && !matches!(name, "." | "..") {
        return Ok(());
    }
    let reason = "it must be 1 to 15 printable ASCII characters without spaces and / : \" \\ * +".to_owned();
    Err(Error::Value { key, value: name.to_owned(), reason })
}

fn masquerade_mark(bit: Option<u8>) -> Result<u32, Error> {
    let Some(bit) = bit else { return Ok(NodeConfig::MASQUERADE_MARK) };
    let invalid = || Error::Value {
        key: "masquerade-bit",
        value: bit.to_string(),
        reason: "it must be 0 to 31, a bit of a 32-bit mark".to_owned(),
    };
    1_u32.checked_shl(bit.into()).ok_or_else(invalid)
}

fn sync_period(period: Option<SignedDuration>) -> Result<Duration, Error> {
    let period = period.unwrap_or(SignedDuration::from_secs(30));
    match Duration::try_from(period) {
        Ok(duration) if duration >= Duration::from_secs(1) => Ok(duration),
        _ => Err(Error::Value {
            key: "sync-period",
            value: period.to_string(),
            reason: "it must be at least 1s".to_owned(),
        }),
    }
}

fn bind_address(key: &'static str, given: Option<String>, default: &str) -> Result<Option<SocketAddr>, Error> {
    let value = given.unwrap_or_else(|| default.to_owned());
    if value.is_empty() {
        return Ok(None);
    }
    match value.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(Error::Value { key, value, reason: "it must look like IP:PORT or [IP]:PORT".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, flags: &Settings) -> Result<Config, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, yaml.as_bytes()).unwrap();
        Config::load(flags, Some(file.path()))
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let flags = Settings { node_name: Some("flag".to_owned()), ..Settings::default() };
        let config = load("node-name: file\nzone: z1\nsync-period: 45s\nregister-node: false\n", &flags).unwrap();
        assert_eq!(config.node_name, "flag");
        assert_eq!(config.zone.as_deref(), Some("z1"));
        assert_eq!(config.sync_period, Duration::from_secs(45));
        assert!(!config.register_node);
        assert_eq!(config.control_plane.to_string(), "http://127.0.0.1:7440/");
    }

    #[test]
    fn the_files_for_tls_are_keys_as_well() {
        let yaml =
            "control-plane: https://cp:7440\ncertificate-authority: /ca\nclient-certificate: /c\nclient-key: /k\n";
        let config = load(yaml, &Settings::default()).unwrap();
        let file = |name: &str| Some(PathBuf::from(name));
        let expected = Access {
            certificate_authority: file("/ca"),
            client_certificate: file("/c"),
            client_key: file("/k"),
            token_file: None,
        };
        assert_eq!((config.control_plane.scheme_str(), config.access), (Some("https"), expected));
    }

    #[test]
    fn lists_are_read_and_networks_are_trimmed() {
        let yaml = "node-name: n\nnode-ip: [192.0.2.1, '2001:db8::1']\ncluster-cidr: [10.244.3.9/16]\n";
        let config = load(yaml, &Settings::default()).unwrap();
        assert_eq!(config.node_ips.len(), 2);
        assert_eq!(config.node.detect_local, DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]));
    }

    #[test]
    fn local_traffic_is_told_as_the_mode_says() {
        let cidrs = DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]);
        for (yaml, expected) in [
            ("", DetectLocal::Nothing),
            ("cluster-cidr: [10.244.0.0/16]", cidrs.clone()),
            ("detect-local-mode: ClusterCIDR\ncluster-cidr: [10.244.0.0/16]", cidrs),
            ("detect-local-mode: NodeCIDR\ncluster-cidr: [10.244.0.0/16]", DetectLocal::NodeCidr),
            (
                "detect-local-mode: BridgeInterface\npod-bridge-interface: br0",
                DetectLocal::BridgeInterface("br0".to_owned()),
            ),
            (
                "detect-local-mode: InterfaceNamePrefix\npod-interface-name-prefix: veth",
                DetectLocal::InterfaceNamePrefix("veth".to_owned()),
            ),
        ] {
            let config = load(&format!("node-name: n\n{yaml}\n"), &Settings::default()).expect(yaml);
            assert_eq!(config.node.detect_local, expected, "{yaml}");
        }
    }

    #[test]
    fn the_masquerade_mark_is_one_bit() {
        for (yaml, mark) in [("", 0x4000), ("masquerade-bit: 0", 1), ("masquerade-bit: 31", 0x8000_0000)] {
            let config = load(&format!("node-name: n\n{yaml}\n"), &Settings::default()).expect(yaml);
            assert_eq!(config.node.masquerade_mark, mark, "{yaml}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        for (yaml, words) in [
            ("no-such-key: 1", "no-such-key"),
            ("node-name: UPPER_case", "node-name: \"UPPER_case\""),
            ("control-plane: 127.0.0.1:7440", "control-plane"),
            ("control-plane: ftp://127.0.0.1", "the scheme is ftp"),
            ("control-plane: https://cp:7440", "control-plane: https://cp:7440 needs --certificate-authority FILE"),
            ("control-plane: http://cp:7440\ntoken-file: /t", "readable on the way"),
            ("client-key: /k", "control-plane: --client-key needs --client-certificate"),
            ("node-ip: [192.0.2.1, 192.0.2.2]", "a second IPv4 address"),
            ("node-ip: [127.0.0.1]", "node-ip: \"127.0.0.1\""),
            ("cluster-cidr: [10.244.0.0/33]", "cluster-cidr"),
            ("sync-period: 10ms", "at least 1s"),
            ("masquerade-bit: 32", "masquerade-bit: \"32\""),
            ("detect-local-mode: NodeIP", "NodeIP"),
            ("detect-local-mode: ClusterCIDR", "detect-local-mode: \"ClusterCIDR\": it needs cluster-cidr"),
            ("detect-local-mode: BridgeInterface", "it needs pod-bridge-interface"),
            ("detect-local-mode: InterfaceNamePrefix", "it needs pod-interface-name-prefix"),
            ("pod-bridge-interface: br0", "pod-bridge-interface: \"br0\": it is used with detect-local-mode"),
            (
                "detect-local-mode: BridgeInterface\npod-bridge-interface: a-name-of-16-chr",
                "pod-bridge-interface: \"a-name-of-16-chr\": it must be 1 to 15",
            ),
            ("detect-local-mode: InterfaceNamePrefix\npod-interface-name-prefix: veth*", "without spaces and"),
            ("metrics-bind-address: here", "metrics-bind-address: \"here\""),
            ("proxy-mode: userspace", "userspace"),
        ] {
            let error = load(yaml, &Settings::default()).expect_err(yaml).to_string();
            assert!(error.contains(words), "{yaml}: {error}");
        }
    }

    #[test]
    fn an_empty_bind_address_serves_nothing() {
        let config = load("metrics-bind-address: ''\n", &Settings::default()).unwrap();
        assert_eq!(config.metrics_bind_address, None);
        assert_eq!(config.healthz_bind_address, Some("0.0.0.0:10256".parse().unwrap()));
    }
}

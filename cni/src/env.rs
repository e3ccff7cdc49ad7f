//! What the runtime says in environment variables: the verb, which container, and `CNI_ARGS`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::conf::mac::Mac;
use crate::error::Error;

/// What the plugin is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container to the network.
    Add,
    /// Detach it.
    Del,
    /// See whether it is attached as it was told.
    Check,
    /// Remove what belongs to containers that are gone.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

/// A container's interface: what is attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// The container, as its runtime names it.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

/// What `CNI_ARGS` says, as far as this plugin knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `IP`: addresses that are asked for.
    pub ips: Vec<IpAddr>,
    /// `MAC`: the hardware address that is asked for.
    pub mac: Option<Mac>,
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and `K8S_POD_UID`.
    pub pod: Option<Pod>,
}

/// Which Pod a container is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, where the runtime says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Where variables are looked up: the environment, and in tests something else.
pub trait Variables {
    /// The value of a variable; nothing where it is missing or empty.
    fn get(&self, name: &'static str) -> Option<String>;
}

/// This process's environment.
#[derive(Clone, Copy, Debug)]
pub struct Environment;

/// The kernel's `IFNAMSIZ`, with the zero at the end.
const IFNAMSIZ: usize = 16;
/// A file is named after the attachment: `<container>:<interface>.json` and, while it is written, a few letters more. Names
/// of files have at most 255 bytes.
const CONTAINER_ID: usize = 200;

impl Variables for Environment {
    fn get(&self, name: &'static str) -> Option<String> {
        let value = std::env::var_os(name)?;
        (!value.is_empty()).then(|| value.to_string_lossy().into_owned())
    }
}

impl Verb {
    /// From `CNI_COMMAND`.
    pub fn read(variables: &impl Variables) -> Result<Self, Error> {
        let value = variables.get("CNI_COMMAND").ok_or(Error::MissingVariable("CNI_COMMAND"))?;
        let all = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];
        all.into_iter().find(|verb| verb.as_str() == value).ok_or_else(|| Error::Variable {
            variable: "CNI_COMMAND",
            value,
            problem: "is none of ADD, DEL, CHECK, GC, STATUS, VERSION".into(),
        })
    }

    /// As the specification writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl Attachment {
    /// From `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub fn read(variables: &impl Variables) -> Result<Self, Error> {
        let container_id = variables.get("CNI_CONTAINERID").ok_or(Error::MissingVariable("CNI_CONTAINERID"))?;
        if let Some(problem) = container_id_problem(&container_id) {
            return Err(Error::Variable { variable: "CNI_CONTAINERID", value: container_id, problem });
        }
        let ifname = variables.get("CNI_IFNAME").ok_or(Error::MissingVariable("CNI_IFNAME"))?;
        if let Some(problem) = ifname_problem(&ifname) {
            return Err(Error::Variable { variable: "CNI_IFNAME", value: ifname, problem });
        }
        Ok(Self { container_id, ifname })
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}, interface {}", self.container_id, self.ifname)
    }
}

/// The container's network namespace, from `CNI_NETNS`, for the verbs that need it.
pub fn netns(variables: &impl Variables) -> Result<PathBuf, Error> {
    variables.get("CNI_NETNS").map(PathBuf::from).ok_or(Error::MissingVariable("CNI_NETNS"))
}

/// Where other plugins are, from `CNI_PATH`.
pub fn plugin_dirs(variables: &impl Variables) -> Result<Vec<PathBuf>, Error> {
    let path = variables.get("CNI_PATH").ok_or(Error::MissingVariable("CNI_PATH"))?;
    Ok(std::env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty()).collect())
}

/// Whether a name is one that the specification allows for containers and networks: alphanumeric at first, then also `_`,
/// `.` and `-`.
pub(crate) fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// What is wrong with a container's name.
pub(crate) fn container_id_problem(id: &str) -> Option<String> {
    if id.len() > CONTAINER_ID {
        return Some(format!("has {} bytes, and may have {CONTAINER_ID}", id.len()));
    }
    (!is_identifier(id)).then(|| "must begin with a letter or digit and go on with those, `_`, `.` and `-`".into())
}

/// What is wrong with an interface's name: `dev_valid_name` of the kernel, and `:`, which the specification forbids too.
pub(crate) fn ifname_problem(name: &str) -> Option<String> {
    if name.len() >= IFNAMSIZ {
        return Some(format!("has {} bytes, and an interface's name may have {}", name.len(), IFNAMSIZ - 1));
    }
    let is_wrong = name.is_empty()
        || matches!(name, "." | "..")
        || name.chars().any(|letter| matches!(letter, '/' | ':') || letter.is_whitespace() || letter.is_control());
    is_wrong.then(|| "is no name for an interface (empty, `.`, `..`, or with `/`, `:` or white space)".into())
}

impl Args {
    /// From `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`.
    pub fn read(variables: &impl Variables) -> Result<Self, Error> {
        variables.get("CNI_ARGS").map_or(Ok(Self::default()), |text| Self::parse(&text))
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Variable { variable: "CNI_ARGS", value: text.into(), problem };
        let (mut args, mut pod, mut unknown, mut ignores_unknown) = (Self::default(), Pod::default(), None, false);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(wrong(format!("has {pair:?}, which is no KEY=VALUE")));
            };
            match key {
                "IgnoreUnknown" => {
                    ignores_unknown = parse_bool(value).ok_or_else(|| {
                        wrong(format!("has IgnoreUnknown={value:?}, which is neither true nor false"))
                    })?;
                }
                "IP" => {
                    for ip in value.split(',').filter(|ip| !ip.is_empty()) {
                        let parsed =
                            parse_ip(ip).ok_or_else(|| wrong(format!("has IP={ip:?}, which is no address")))?;
                        args.ips.push(parsed);
                    }
                }
                "MAC" => {
                    let mac = value.parse().map_err(|problem| wrong(format!("has MAC={value:?}: {problem}")))?;
                    args.mac = Some(mac);
                }
                "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
                "K8S_POD_NAME" => value.clone_into(&mut pod.name),
                "K8S_POD_UID" => pod.uid = Some(value.to_owned()),
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                key => unknown = unknown.or(Some(key)),
            }
        }
        if let Some(key) = unknown.filter(|_| !ignores_unknown) {
            return Err(wrong(format!(
                "has {key:?}, which this plugin does not know; IgnoreUnknown=1 would let that pass"
            )));
        }
        args.pod = Some(pod).filter(|pod| !pod.name.is_empty() && !pod.namespace.is_empty());
        Ok(args)
    }
}

/// As the reference implementation reads `IgnoreUnknown`.
fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// An address, with or without the length of its prefix, which the range that it is in decides.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<ipnet::IpNet>().ok().map(|net| net.addr()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_are_read_as_runtimes_write_them() {
        let args = Args::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=3f;K8S_POD_UID=u;X=y",
        )
        .unwrap();
        let pod = Pod { namespace: "default".into(), name: "web-0".into(), uid: Some("u".into()) };
        assert_eq!(args, Args { pod: Some(pod), ..Args::default() });
        let args = Args::parse("IP=10.1.0.7,fd00::7/64;MAC=02:00:00:00:00:01").unwrap();
        assert_eq!(args.ips, ["10.1.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert_eq!(args.mac, "02:00:00:00:00:01".parse().ok());
    }

    #[test]
    fn wrong_args_are_named() {
        for (text, part) in [
            ("nonsense", "is no KEY=VALUE"),
            ("IgnoreUnknown=perhaps", "neither true nor false"),
            ("COLOUR=red", "IgnoreUnknown=1 would let that pass"),
            ("IgnoreUnknown=0;COLOUR=red", "\"COLOUR\""),
            ("IP=10.1.0.300", "is no address"),
            ("MAC=00:11:22", "MAC="),
        ] {
            let error = Args::parse(text).unwrap_err();
            assert_eq!(error.code(), 4, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn names_of_interfaces_are_those_of_the_kernel() {
        for name in ["eth0", "a", "net-1.2", "123456789012345"] {
            assert_eq!(ifname_problem(name), None, "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "1234567890123456", "a\u{0}"] {
            assert!(ifname_problem(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn names_of_containers_are_those_of_the_specification() {
        assert_eq!(container_id_problem("3f2a_x.y-z"), None);
        for id in ["", "-a", "../x", "a/b", "a b", "ä", &"a".repeat(201)] {
            assert!(container_id_problem(id).is_some(), "{id:?}");
        }
    }
}

//! A node: a network namespace with a `/run/tollgate` of its own, in which the plugin is called as a runtime calls it.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate_lab::link::VethEnd;
use tollgate_lab::{NetNs, Probe, Servers};

/// Where Debian has the reference plugins.
pub(crate) const REFERENCE: &str = "/usr/lib/cni";
/// Where the plugin keeps its files, in every node's view.
const STATE: &str = "/run/tollgate";

/// A node, and a host outside that is one hop away.
pub(crate) struct Node {
    pub(crate) netns: NetNs,
    pub(crate) outside: NetNs,
    state: TempDir,
}

/// A pod that is to be attached: a network namespace.
pub(crate) struct Pod {
    pub(crate) netns: NetNs,
    pub(crate) id: String,
}

/// A call of the plugin.
pub(crate) struct Call<'a> {
    node: &'a Node,
    variables: Vec<(&'static str, String)>,
    stdin: Vec<u8>,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) is_success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Node {
    /// `192.0.2.1` and `2001:db8:1::1`; the host outside has `.2` and sends pods' answers through the node.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let (netns, outside) = (NetNs::new(name)?, NetNs::new(format!("{name}-outside"))?);
        netns.links()?.add_veth("uplink", &VethEnd { name: "eth0", netns: &outside })?;
        for (netns, link, addresses) in [
            (&netns, "uplink", ["192.0.2.1/24", "2001:db8:1::1/64"]),
            (&outside, "eth0", ["192.0.2.2/24", "2001:db8:1::2/64"]),
        ] {
            netns.links()?.up(link)?;
            for address in addresses {
                netns.links()?.add_address(link, address.parse()?)?;
            }
        }
        netns.links()?.add_route("0.0.0.0/0".parse()?, "192.0.2.2".parse()?)?;
        // Two nodes of one test may not see each other's files.
        let state = TempDir::new_in("/run")?;
        fs::create_dir_all(STATE)?;
        Ok(Self { netns, outside, state })
    }

    /// The host outside knows the way to pods by itself, for tests that are not about masquerading.
    pub(crate) fn route_to_pods(&self) -> Result<()> {
        self.outside.links()?.add_route("10.1.0.0/16".parse()?, "192.0.2.1".parse()?)?;
        self.outside.links()?.add_route("fd00:1::/64".parse()?, "2001:db8:1::1".parse()?)
    }

    /// A pod of this name that is not attached yet.
    pub(crate) fn pod(&self, name: &str) -> Result<Pod> {
        Ok(Pod { netns: NetNs::new(name)?, id: name.into() })
    }

    /// A pod that is attached, with servers in it.
    pub(crate) fn attached(&self, name: &str, conf: &Value) -> Result<(Pod, Value, Servers)> {
        let pod = self.pod(name)?;
        let result = self.add(&pod, conf)?;
        let servers = Servers::start(&pod.netns)?;
        Ok((pod, result, servers))
    }

    /// ADD, which must succeed.
    pub(crate) fn add(&self, pod: &Pod, conf: &Value) -> Result<Value> {
        self.call("ADD", conf).of(pod).run()?.success()
    }

    /// DEL, which must succeed.
    pub(crate) fn del(&self, pod: &Pod, conf: &Value) -> Result<()> {
        self.call("DEL", conf).of(pod).run()?.success().map(drop)
    }

    /// GC for which no attachment is valid, which must succeed.
    pub(crate) fn gc(&self, conf: &Value, valid: &[&Pod]) -> Result<()> {
        let mut conf = conf.clone();
        conf["cniVersion"] = "1.1.0".into();
        let valid = valid.iter().map(|pod| json!({ "containerID": pod.id, "ifname": "eth0" }));
        conf["cni.dev/valid-attachments"] = valid.collect();
        self.call("GC", &conf).run()?.success().map(drop)
    }

    /// A call without a container.
    pub(crate) fn call(&self, verb: &str, conf: &Value) -> Call<'_> {
        let variables = vec![("CNI_COMMAND", verb.to_owned()), ("CNI_PATH", REFERENCE.to_owned())];
        Call { node: self, variables, stdin: conf.to_string().into_bytes() }
    }

    /// A file of the plugin's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    /// A command of the node that must succeed: its output.
    pub(crate) fn command(&self, words: &str) -> Result<String> {
        command(&self.netns, words)
    }

    /// All that the plugin has made for pods and not taken away: links, elements of sets, leases and records.
    pub(crate) fn leftovers(&self, network: &str) -> Result<Vec<String>> {
        let mut left: Vec<String> =
            self.netns.links()?.names()?.into_iter().filter(|name| name.starts_with("veth")).collect();
        let rules = self.command("nft list ruleset")?;
        // Comments begin with the name of the pair.
        left.extend(rules.lines().filter(|line| line.contains("comment \"veth")).map(|line| line.trim().to_owned()));
        let leases = fs::read_to_string(self.file(&format!("cni/networks/{network}/leases"))).unwrap_or_default();
        let held = |line: &&str| !line.starts_with('#') && line.split_whitespace().nth(1) != Some("-");
        left.extend(leases.lines().filter(held).map(str::to_owned));
        let records = fs::read_dir(self.file(&format!("cni/networks/{network}/attachments")));
        left.extend(
            records.into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()),
        );
        Ok(left)
    }

    /// Fails if there is any of that.
    pub(crate) fn ensure_nothing_left(&self, network: &str) -> Result<()> {
        let left = self.leftovers(network)?;
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    }
}

impl Pod {
    /// Its dials.
    pub(crate) fn probe(&self) -> Probe {
        Probe::from(&self.netns)
    }

    /// A command in it that must succeed: its output.
    pub(crate) fn command(&self, words: &str) -> Result<String> {
        command(&self.netns, words)
    }
}

impl Call<'_> {
    /// With a variable, in place of the one that was there.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value.into()));
        self
    }

    /// Without a variable.
    #[must_use]
    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self
    }

    /// For a pod's interface `eth0`.
    #[must_use]
    pub(crate) fn of(self, pod: &Pod) -> Self {
        let netns = pod.netns.path().to_string_lossy().into_owned();
        self.with("CNI_CONTAINERID", &*pod.id).with("CNI_NETNS", netns).with("CNI_IFNAME", "eth0")
    }

    /// With something else on standard input.
    #[must_use]
    pub(crate) fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Starts it; it has read all of standard input when it ends.
    pub(crate) fn start(self) -> Result<Child> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-cni"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(self.variables);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let state = self.node.state.path().to_owned();
        // SAFETY: between fork and exec, two system calls.
        unsafe { command.pre_exec(move || Ok(enter_view(&state)?)) };
        let mut child = self.node.netns.run(move || command.spawn()).context("can't run the plugin")?;
        // It may have been refused before it reads.
        let _ = child.stdin.take().context("stdin is piped")?.write_all(&self.stdin);
        Ok(child)
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Result<Answer> {
        Ok(self.start()?.wait_with_output()?.into())
    }
}

/// The node's own files where the plugin looks for them.
fn enter_view(state: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(Some(state), STATE, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { is_success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Answer {
    /// What a success has answered; null if nothing.
    pub(crate) fn success(self) -> Result<Value> {
        ensure!(self.is_success, "it failed: {}{}", self.stdout, self.stderr);
        Ok(if self.stdout.is_empty() { Value::Null } else { serde_json::from_str(&self.stdout)? })
    }

    /// The code and the sentence of a failure.
    pub(crate) fn failure(self) -> Result<(u64, String)> {
        ensure!(!self.is_success, "it succeeded: {}", self.stdout);
        let error: Value = serde_json::from_str(&self.stdout)
            .with_context(|| format!("no error on standard output: {:?} {:?}", self.stdout, self.stderr))?;
        match (error["code"].as_u64(), error["msg"].as_str(), error["cniVersion"].as_str()) {
            (Some(code), Some(text), Some(_)) => Ok((code, text.to_owned())),
            _ => bail!("not an error as the specification has it: {error}"),
        }
    }
}

/// A command in a namespace that must succeed: its output.
pub(crate) fn command(netns: &NetNs, words: &str) -> Result<String> {
    let mut words = words.split_whitespace().map(str::to_owned);
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words).env("LC_ALL", "C");
    let output = netns.run(move || command.output().map(|output| (output, format!("{command:?}"))));
    let (output, command) = output?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A configuration with ranges of both families.
pub(crate) fn conf() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "tollgate-cni",
        "ipam": { "type": "tollgate", "ranges": [[{ "subnet": "10.1.0.0/16" }], [{ "subnet": "fd00:1::/64" }]] },
    })
}

/// The configuration with changes.
pub(crate) fn conf_with(change: impl FnOnce(&mut Value)) -> Value {
    let mut conf = conf();
    change(&mut conf);
    conf
}

/// The addresses of a result, without their prefixes.
pub(crate) fn addresses(result: &Value) -> Vec<std::net::IpAddr> {
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
}

/// A port at each of a result's addresses.
pub(crate) fn sockets(result: &Value, port: u16) -> Vec<SocketAddr> {
    addresses(result).into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

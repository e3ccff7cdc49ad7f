//! `cargo xtask bench cni`: the plugin beside Debian's reference plugins, in one run, call for call by turns.

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use serde_json::{Value, json};
use tollgate_lab::{NetNs, isolate};

use crate::dist;
use crate::setup::{self, CNI, Mode};

/// Measure ADD and DEL of the CNI plugin and of Debian's bridge + host-local.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many containers are attached and detached one after the other.
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// How many containers are attached at the same time.
    #[arg(long, default_value_t = 100)]
    at_once: usize,
}

/// A plugin, and what it is told.
struct Candidate {
    name: &'static str,
    program: PathBuf,
    conf: Value,
}

/// What a call took.
#[derive(Clone, Copy, Default)]
struct Cost {
    elapsed: Duration,
    cpu: Duration,
}

/// What is measured of one candidate.
#[derive(Default)]
struct Figures {
    add: Vec<Cost>,
    del: Vec<Cost>,
    resident: u64,
    adds_at_once: Vec<Duration>,
    dels_at_once: Vec<Duration>,
}

/// Set for the program that is isolated, and tells it where the plugin is.
const PLUGIN: &str = "TOLLGATE_BENCH_CNI";
/// A process whose memory has not grown for so long is at its end, held up.
const SETTLED: Duration = Duration::from_millis(500);
/// How often all containers are attached at once.
const BURSTS: usize = 3;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Some(plugin) = std::env::var_os(PLUGIN) else {
        setup::ensure(Mode::All, false)?;
        println!("building the plugin as it is handed out …");
        let this = std::env::current_exe().context("cannot find this program's own path")?;
        let status =
            Command::new(this).args(std::env::args_os().skip(1)).env(PLUGIN, dist::build_plugin()?).status()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    };
    isolate();
    // A candidate has a bridge of its own in one node, so that the kernel is the same for both.
    let conf = |kind: &str, name: &str, subnet: &str, ipam: Value| {
        let mut ipam = ipam;
        ipam["ranges"] = json!([[{ "subnet": subnet }]]);
        json!({ "cniVersion": "1.0.0", "name": name, "type": kind, "bridge": name, "isDefaultGateway": true, "ipam": ipam })
    };
    let candidates = [
        Candidate {
            name: "tollgate-cni",
            program: PathBuf::from(plugin),
            conf: conf("tollgate-cni", "ours", "10.1.0.0/16", json!({ "type": "tollgate" })),
        },
        Candidate {
            name: "bridge + host-local",
            program: Path::new(CNI).join("bridge"),
            conf: conf(
                "bridge",
                "theirs",
                "10.2.0.0/16",
                json!({ "type": "host-local", "dataDir": "/run/host-local" }),
            ),
        },
    ];
    let figures = measure(&candidates, args)?;
    print(&candidates, &figures)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(candidates: &[Candidate; 2], args: &Args) -> Result<[Figures; 2]> {
    let node = NetNs::new("node")?;
    let pods: Vec<NetNs> =
        (0..args.at_once.max(1)).map(|number| NetNs::new(format!("pod-{number}"))).collect::<Result<_>>()?;
    let mut figures = [Figures::default(), Figures::default()];
    for round in 0..args.rounds {
        for (candidate, figures) in candidates.iter().zip(&mut figures) {
            let pod = &pods[round % pods.len()];
            figures.add.push(candidate.call(&node, "ADD", pod)?);
            figures.del.push(candidate.call(&node, "DEL", pod)?);
        }
    }
    for (candidate, figures) in candidates.iter().zip(&mut figures) {
        figures.resident = candidate.resident(&node, &pods[0])?;
    }
    for _ in 0..BURSTS {
        for (candidate, figures) in candidates.iter().zip(&mut figures) {
            figures.adds_at_once.push(candidate.call_at_once(&node, "ADD", &pods)?);
            figures.dels_at_once.push(candidate.call_at_once(&node, "DEL", &pods)?);
        }
    }
    Ok(figures)
}

impl Candidate {
    fn command(&self, verb: &str, pod: &NetNs) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", pod.name()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", CNI),
        ]);
        command.env("CNI_NETNS", pod.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn start(&self, node: &NetNs, verb: &str, pod: &NetNs) -> Result<Child> {
        let mut command = self.command(verb, pod);
        let mut child =
            node.run(move || command.spawn()).with_context(|| format!("cannot run {}", self.program.display()))?;
        child.stdin.take().context("stdin is piped")?.write_all(self.conf.to_string().as_bytes())?;
        Ok(child)
    }

    /// From the start of the process until it has ended, and what it and its children took.
    fn call(&self, node: &NetNs, verb: &str, pod: &NetNs) -> Result<Cost> {
        let start = Instant::now();
        let child = self.start(node, verb, pod)?;
        let (is_success, cost) = wait(&child)?;
        if !is_success {
            bail!("{}, {verb}: {}", self.name, std::io::read_to_string(child.stdout.context("stdout is piped")?)?);
        }
        Ok(Cost { elapsed: start.elapsed(), ..cost })
    }

    /// What the process of an ADD has had in memory at most. At its end it is held up by a full pipe, and looked at.
    fn resident(&self, node: &NetNs, pod: &NetNs) -> Result<u64> {
        let (mut reader, mut writer) = std::io::pipe()?;
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        while writer.write(&[b' '; 4096]).is_ok() {}
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
        let mut command = self.command("ADD", pod);
        command.stdout(writer);
        let mut child = node.run(move || command.spawn())?;
        child.stdin.take().context("stdin is piped")?.write_all(self.conf.to_string().as_bytes())?;
        let (mut last, mut since) = (0, Instant::now());
        while since.elapsed() < SETTLED {
            std::thread::sleep(Duration::from_millis(1));
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
            let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
            if kib != last {
                (last, since) = (kib, Instant::now());
            }
        }
        std::io::copy(&mut reader, &mut std::io::sink())?;
        ensure!(child.wait()?.success(), "{}, ADD failed", self.name);
        self.call(node, "DEL", pod)?;
        Ok(last << 10)
    }

    fn call_at_once(&self, node: &NetNs, verb: &str, pods: &[NetNs]) -> Result<Duration> {
        let start = Instant::now();
        let calls: Vec<Child> = pods.iter().map(|pod| self.start(node, verb, pod)).collect::<Result<_>>()?;
        for call in calls {
            let output = call.wait_with_output()?;
            ensure!(output.status.success(), "{}, {verb}: {}", self.name, String::from_utf8_lossy(&output.stdout));
        }
        Ok(start.elapsed())
    }
}

/// Waits for a child: whether it succeeded, and its use of the processor, with that of its own children.
fn wait(child: &Child) -> Result<(bool, Cost)> {
    let pid = i32::try_from(child.id()).context("a pid is an i32")?;
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::uninit());
    // SAFETY: both are valid for writing, and the second is written where the call succeeds.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
    ensure!(waited == pid, "cannot wait for a process: {}", std::io::Error::last_os_error());
    // SAFETY: the call has succeeded.
    let usage = unsafe { usage.assume_init() };
    let duration = |time: libc::timeval| {
        let part = |number: i64| u64::try_from(number).unwrap_or_default();
        Duration::from_secs(part(time.tv_sec)) + Duration::from_micros(part(time.tv_usec))
    };
    let cost = Cost { elapsed: Duration::ZERO, cpu: duration(usage.ru_utime) + duration(usage.ru_stime) };
    Ok((status == 0, cost))
}

fn print(candidates: &[Candidate; 2], [ours, theirs]: &[Figures; 2]) -> Result<()> {
    println!("\n{:<28} {:>20} {:>20} {:>8}", "", candidates[0].name, candidates[1].name, "ratio");
    let line = |what: &str, ours: Duration, theirs: Duration| {
        let (ours, theirs) = (ours.as_secs_f64() * 1e3, theirs.as_secs_f64() * 1e3);
        println!("{what:<28} {ours:>17.2} ms {theirs:>17.2} ms {:>8.2}", ours / theirs);
    };
    let of = |costs: &[Cost], part: fn(&Cost) -> Duration| median(costs.iter().map(part).collect());
    line("ADD, median", of(&ours.add, |cost| cost.elapsed), of(&theirs.add, |cost| cost.elapsed));
    line("DEL, median", of(&ours.del, |cost| cost.elapsed), of(&theirs.del, |cost| cost.elapsed));
    line("ADD, processor time", of(&ours.add, |cost| cost.cpu), of(&theirs.add, |cost| cost.cpu));
    line("DEL, processor time", of(&ours.del, |cost| cost.cpu), of(&theirs.del, |cost| cost.cpu));
    line("all ADDs at once", median(ours.adds_at_once.clone()), median(theirs.adds_at_once.clone()));
    line("all DELs at once", median(ours.dels_at_once.clone()), median(theirs.dels_at_once.clone()));
    let bytes = |count: u64| ByteSize(count).to_string();
    println!("{:<28} {:>20} {:>20}", "resident memory", bytes(ours.resident), bytes(theirs.resident));
    println!("{:<28} {:>20}", "binary", ByteSize(candidates[0].program.metadata()?.len()).to_string());
    println!(
        "\nDEL of tollgate-cni leaves a child to wait while the kernel frees the link that is gone: its processor time does not count that."
    );
    Ok(())
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

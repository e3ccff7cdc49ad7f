//! `cargo xtask vm`: a command in a guest, on a kernel that has what this machine's may lack.
//!
//! ```text
//! xtask            unpacks the packages, waits, exits as the command did
//! └─ isolated      pid and mount namespaces of its own: whatever ends xtask ends the guest, and leaves no file
//!    └─ monitor    user-mode Linux, or QEMU without KVM
//!       └─ guest   init.sh is pid 1: the host's root read-only below an overlay in memory, the target folder read-write
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

mod guest;
mod initrd;
mod monitor;
mod packages;
mod script;

pub(crate) use packages::{ensure, remove, unpacked};

/// The status of this command where the guest failed, and not what ran in it; as `docker run` and `timeout` have it.
const GUEST_FAILED: u8 = 125;
/// The status of this command where the deadline passed; as `timeout` has it.
const DEADLINE_PASSED: u8 = 124;

/// Run a command as root in a guest with a kernel of its own, and exit as it does.
///
/// The guest's root is this machine's, read-only, with what it writes thrown away at its end; the target folder is shared
/// read-write. The command starts in the current folder, without standard input and without network, in a fresh
/// environment. Exits with 124 where the deadline passed, with 125 where the guest failed, and else as the command did.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The guest's kernel.
    #[arg(long, value_enum, default_value_t)]
    kernel: Kernel,
    /// Pass an environment variable on, or set one: NAME or NAME=VALUE.
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// The guest's memory in MiB; what it writes outside the target folder lies there, too.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,
    /// Seconds after which the guest is ended, whatever it does.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    deadline: u64,
    /// Do not ask before downloading what is missing.
    #[arg(long)]
    yes: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<std::ffi::OsString>,
}

/// A guest's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// User-mode Linux 6.1: quick; IPVS, SCTP, ipset and iptables-legacy, but no nftables and no BTF.
    #[default]
    Uml,
    /// Debian's Linux 6.1 in an emulated machine: everything, and slow.
    #[value(name = "6.1")]
    V6_1,
    /// Linux 6.12 of Debian's backports in an emulated machine.
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    /// Its name on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// How a guest came to its end.
#[derive(Debug)]
enum Verdict {
    /// The command ended with a status, as a shell counts it.
    Exited(u8),
    /// The guest was ended at the deadline.
    DeadlinePassed,
    /// The kernel panicked, with these words.
    Panicked(String),
    /// The guest ended without having run the command to its end.
    Lost,
}

/// Never fails otherwise than with [`GUEST_FAILED`], so that the command's own status is told apart.
pub(crate) fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(GUEST_FAILED)
        }
    }
}

fn try_run(args: &Args) -> Result<u8> {
    let command = script::command(&args.command, &args.env)?;
    let packages_time = ensure(args.kernel, args.yes)?;
    let (packages, share) = (packages::folder()?, target_folder()?);
    tollgate_lab::try_isolate().context("cannot isolate a guest")?;
    let start = Instant::now();
    let guest = guest::Guest { kernel: args.kernel, memory: args.memory, share, packages, command };
    let run = guest.run(Duration::from_secs(args.deadline))?;
    let end = Instant::now();
    let seconds = |duration: Duration| format!("{:.1} s", duration.as_secs_f64());
    let started = run.started.unwrap_or(end);
    eprintln!(
        "vm: kernel {}: packages {}, boot {}, command {}",
        args.kernel.name(),
        seconds(packages_time),
        seconds(started - start),
        seconds(end - started)
    );
    let what = if run.started.is_some() { "the command ran" } else { "it booted" };
    let (status, words) = match run.verdict {
        Verdict::Exited(status) => return Ok(status),
        Verdict::DeadlinePassed => {
            let words =
                format!("the guest was ended at its deadline of {} s, while {what} (--deadline)", args.deadline);
            (DEADLINE_PASSED, words)
        }
        Verdict::Panicked(panic) => (GUEST_FAILED, format!("the guest's kernel panicked, while {what}: {panic}")),
        Verdict::Lost => (GUEST_FAILED, format!("the guest ended without a status, while {what}")),
    };
    eprintln!("error: {words}; the end of its console:");
    for line in run.console {
        eprintln!("  | {line}");
    }
    Ok(status)
}

/// The folder that cargo builds into: this program is in `target/PROFILE`.
fn target_folder() -> Result<PathBuf> {
    let own = tollgate_lab::own_program()?;
    let folder = own.ancestors().nth(2).context("this program is not in a target folder")?;
    ensure!(folder.is_dir(), "{} is not a folder", folder.display());
    Ok(folder.to_owned())
}

//! `cargo xtask setup`: what Tollgate's build and tests need of the machine, installed and removed again.
//!
//! What was installed is written down outside the repository, so that `--remove` takes back just that, whichever clone
//! did it.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

mod packages;
mod toolchain;

pub(crate) use toolchain::Toolchain;

use crate::{ebpf, vm};

/// Where Debian puts programs for the administrator, which an ordinary user's PATH may lack.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Where Debian puts CNI plugins.
pub(crate) const CNI: &str = "/usr/lib/cni";

/// Install what the chosen mode needs, and say why; quick when nothing is missing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to be ready for.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mode: Mode,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Remove again what this command installed.
    #[arg(long, conflicts_with = "mode")]
    remove: bool,
}

/// A mode of the proxy, as far as the machine must be made ready for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The mode nftables.
    Nftables,
    /// The mode iptables.
    Iptables,
    /// The mode ebpf.
    Ebpf,
    /// Every mode, and the tests.
    #[default]
    All,
}

/// A program that must be there.
struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const NFT: Need =
    Need { program: "nft", package: "nftables", why: "the tests see with it what the mode nftables has written" };

const IPTABLES: Need = Need {
    program: "iptables-restore",
    package: "iptables",
    why: "the mode iptables writes and reads its rules with it; the tests set FORWARD policies with it in every mode",
};

const IPSET: Need = Need { program: "ipset", package: "ipset", why: "the mode iptables keeps its sets with it" };

const CONNTRACK: Need = Need {
    program: "conntrack",
    package: "conntrack",
    why: "the tests make and list flows with it, to see that the stale ones go and no others",
};

const CNI_PLUGINS: Need = Need {
    program: "host-local",
    package: "containernetworking-plugins",
    why: "the CNI plugin gets addresses from it in a test, and is measured beside the reference plugins in `bench cni`",
};

impl Mode {
    fn needs(self) -> &'static [Need] {
        match self {
            // They speak to the kernel themselves.
            Self::Nftables | Self::Ebpf => &[],
            Self::Iptables => &[IPTABLES, IPSET],
            Self::All => &[NFT, IPTABLES, IPSET, CONNTRACK, CNI_PLUGINS],
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.remove {
        remove(args.yes)?;
    } else {
        install(args.mode.needs(), &toolchain::missing(), args.yes)?;
        if args.mode == Mode::All {
            vm::ensure(vm::Kernel::Uml, args.yes)?;
        }
        println!("setup: everything is there");
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that all is there that a mode needs, and builds the eBPF programs, which every build of the proxy embeds. Says
/// nothing where there is nothing to do.
pub(crate) fn ensure(mode: Mode, yes: bool) -> Result<()> {
    // Programs that are built already need no toolchain.
    let toolchain = if ebpf::is_current()? { Vec::new() } else { toolchain::missing() };
    install(mode.needs(), &toolchain, yes)?;
    ebpf::ensure()
}

/// Makes sure that the eBPF programs can be built.
pub(crate) fn ensure_toolchain(yes: bool) -> Result<()> {
    install(&[], &toolchain::missing(), yes)
}

/// Installs the programs that are missing, and the toolchain if it is said to be.
fn install(needs: &[Need], toolchain: &[String], yes: bool) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| find(need.program).is_none()).collect();
    if missing.is_empty() && toolchain.is_empty() {
        return Ok(());
    }
    println!("setup: this machine lacks");
    for need in &missing {
        println!("  {} (Debian package {}): {}", need.program, need.package, need.why);
    }
    toolchain.iter().for_each(|line| println!("  {line}"));
    confirm("Install all of that?", yes)?;
    if !missing.is_empty() {
        packages::install(&missing.iter().map(|need| need.package).collect::<Vec<_>>())?;
    }
    for need in missing {
        find(need.program)
            .with_context(|| format!("{} is installed, but {} is not found", need.package, need.program))?;
    }
    if !toolchain.is_empty() {
        toolchain::install()?;
    }
    Ok(())
}

/// Asks once on a terminal; without one, or where it was answered before, goes on.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes || !io::stdin().is_terminal() {
        return Ok(());
    }
    print!("{question} [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    bail!("nothing was changed");
}

fn remove(yes: bool) -> Result<()> {
    let record = packages::recorded()?;
    let guests = vm::unpacked()?;
    let folder = guests.iter().map(|folder| folder.display().to_string());
    let what: Vec<String> = toolchain::installed().into_iter().chain(folder).chain(record.iter().cloned()).collect();
    if what.is_empty() {
        println!("setup: nothing was installed by this command");
        return Ok(());
    }
    println!("setup: removes {}", what.join(" "));
    let others = if record.is_empty() { Vec::new() } else { packages::dependents(&record)? };
    if !others.is_empty() {
        bail!("{} came later and need some of these packages: remove those first", others.join(" "));
    }
    confirm("Remove all of that?", yes)?;
    if let Some(folder) = guests {
        vm::remove(&folder)?;
    }
    toolchain::remove()?;
    if !record.is_empty() {
        packages::remove(&record)?;
    }
    println!("setup: removed");
    Ok(())
}

/// Where a program is, by PATH and then where administrators' programs and CNI plugins are.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.iter().chain([&CNI]).map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

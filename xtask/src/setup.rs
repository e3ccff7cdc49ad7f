//! `cargo xtask setup`: what Tollgate's build and tests need of the machine, installed and removed again.
//!
//! What was installed is written down outside the repository, so that `--remove` takes back just that, whichever clone
//! did it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::vm;

/// Where the packages that were installed by this command are written down, a name a line.
const RECORD: &str = "/var/lib/tollgate-setup/packages";

/// Where Debian puts programs for the administrator, which an ordinary user's PATH may lack.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

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

impl Mode {
    fn needs(self) -> &'static [Need] {
        match self {
            // It speaks to the kernel itself.
            Self::Nftables => &[],
            Self::Iptables => &[IPTABLES, IPSET],
            Self::All => &[NFT, IPTABLES, IPSET, CONNTRACK],
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.remove {
        remove(args.yes)?;
    } else {
        ensure(args.mode, args.yes)?;
        println!("setup: everything is there");
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that all that a mode needs is there. Says nothing when it is.
pub(crate) fn ensure(mode: Mode, yes: bool) -> Result<()> {
    let missing: Vec<&Need> = mode.needs().iter().filter(|need| find(need.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: this machine lacks");
    for need in &missing {
        println!("  {} (Debian package {}): {}", need.program, need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if find("apt-get").is_none() {
        bail!("this is not a Debian machine: install by its own means what is named above, then try again");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing needs root: run `apt-get install {}` as root, then try again", packages.join(" "));
    }
    confirm(&format!("Install {} with apt-get?", packages.join(" ")), yes)?;
    install(&packages)?;
    for need in missing {
        find(need.program)
            .with_context(|| format!("{} is installed, but {} is not found", need.package, need.program))?;
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

fn install(packages: &[&str]) -> Result<()> {
    let before = installed_packages()?;
    apt_get(&["update"])?;
    apt_get(&[&["install", "--no-install-recommends"], packages].concat())?;
    let mut record = recorded()?;
    record.extend(installed_packages()?.difference(&before).cloned());
    let path = Path::new(RECORD);
    let write = || -> io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(path, record.iter().map(|name| format!("{name}\n")).collect::<String>())
    };
    write().with_context(|| format!("cannot write down in {RECORD} what was installed"))
}

fn remove(yes: bool) -> Result<()> {
    let has_unpacked = vm::remove()?;
    let record = recorded()?;
    if record.is_empty() {
        if !has_unpacked {
            println!("setup: nothing was installed by this command");
        }
        return Ok(());
    }
    println!("setup: removes {}", record.iter().cloned().collect::<Vec<_>>().join(" "));
    if !nix::unistd::geteuid().is_root() {
        bail!("removing needs root");
    }
    let packages: Vec<&str> = record.iter().map(String::as_str).collect();
    let purge = [&["purge"], packages.as_slice()].concat();
    let others: Vec<String> = would_remove(&purge)?.difference(&record).cloned().collect();
    if !others.is_empty() {
        bail!("{} came later and need some of these packages: remove those first", others.join(" "));
    }
    confirm("Remove these packages with apt-get?", yes)?;
    apt_get(&purge)?;
    fs::remove_file(RECORD).with_context(|| format!("cannot remove {RECORD}"))?;
    let _ = fs::remove_dir(Path::new(RECORD).parent().unwrap_or(Path::new("/")));
    println!("setup: removed");
    Ok(())
}

fn recorded() -> Result<BTreeSet<String>> {
    match fs::read_to_string(RECORD) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {RECORD}")),
    }
}

fn installed_packages() -> Result<BTreeSet<String>> {
    let output = Command::new("dpkg-query")
        .args(["-f", "${db:Status-Abbrev} ${binary:Package}\n", "-W"])
        .output()
        .context("cannot run dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| line.strip_prefix("ii ")).map(|name| name.trim().to_owned()).collect())
}

/// The packages that an apt-get command would remove, by what it says of them (`Purg NAME [VERSION]`).
fn would_remove(args: &[&str]) -> Result<BTreeSet<String>> {
    let output = Command::new("apt-get").arg("--simulate").args(args).output().context("cannot run apt-get")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let goes = |line: &str| line.strip_prefix("Purg ").or_else(|| line.strip_prefix("Remv ")).map(str::to_owned);
    let names = text.lines().filter_map(goes).filter_map(|rest| rest.split(' ').next().map(str::to_owned));
    // dpkg-query writes the architecture of packages that may be there for several, and apt-get does not.
    let recorded = recorded()?;
    Ok(names
        .map(|name| recorded.iter().find(|it| it.split(':').next() == Some(&name)).cloned().unwrap_or(name))
        .collect())
}

fn apt_get(args: &[&str]) -> Result<()> {
    println!("setup: apt-get {}", args.join(" "));
    let status = Command::new("apt-get")
        .args(["--quiet", "--quiet", "--assume-yes", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("`apt-get {}` failed: {status}", args.join(" "));
    }
    Ok(())
}

/// Where a program is, by PATH and then where administrators' programs are.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

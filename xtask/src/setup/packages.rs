//! Debian packages, and which of them were installed here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::find;

/// Where the packages that were installed by this command are written down, a name a line.
const RECORD: &str = "/var/lib/tollgate-setup/packages";

/// Installs packages, and writes down which ones came by it.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    if find("apt-get").is_none() {
        bail!("this is not a Debian machine: install by its own means what is named above, then try again");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing needs root: run `apt-get install {}` as root, then try again", packages.join(" "));
    }
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

/// Takes back what was installed.
pub(super) fn remove(record: &BTreeSet<String>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("removing needs root");
    }
    apt_get(&purge(record))?;
    fs::remove_file(RECORD).with_context(|| format!("cannot remove {RECORD}"))?;
    let _ = fs::remove_dir(Path::new(RECORD).parent().unwrap_or(Path::new("/")));
    Ok(())
}

/// Packages that came later and need those that would be removed.
pub(super) fn dependents(record: &BTreeSet<String>) -> Result<Vec<String>> {
    Ok(would_remove(&purge(record))?.difference(record).cloned().collect())
}

fn purge(record: &BTreeSet<String>) -> Vec<&str> {
    ["purge"].into_iter().chain(record.iter().map(String::as_str)).collect()
}

/// What was installed here.
pub(super) fn recorded() -> Result<BTreeSet<String>> {
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

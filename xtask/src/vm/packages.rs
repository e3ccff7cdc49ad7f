//! The guest's kernel and monitor: unpacked from Debian packages into a folder of our own, never installed.
//!
//! Apt is asked with a configuration of its own. The machine's sources, lists and packages stay as they are, so no root is
//! needed, and a kernel of a suite that the machine does not have can be had.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::{Kernel, initrd};
use crate::setup::confirm;

/// The Debian release whose packages are taken, whatever the machine's is: its kernels are known to work.
const RELEASE: &str = "bookworm";

/// Packages that are unpacked into one folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// What runs in every guest: a shell that needs no libraries, and modprobe.
    Tools,
    /// User-mode Linux, kernel and monitor in one.
    Uml,
    /// The machine emulator.
    Qemu,
    Linux6_1,
    Linux6_12,
}

impl Kernel {
    /// Where the kernel itself is.
    pub(super) fn set(self) -> Set {
        match self {
            Self::Uml => Set::Uml,
            Self::V6_1 => Set::Linux6_1,
            Self::V6_12 => Set::Linux6_12,
        }
    }

    fn sets(self) -> &'static [Set] {
        match self {
            Self::Uml => &[Set::Tools, Set::Uml],
            Self::V6_1 => &[Set::Tools, Set::Qemu, Set::Linux6_1],
            Self::V6_12 => &[Set::Tools, Set::Qemu, Set::Linux6_12],
        }
    }
}

impl Set {
    /// Its folder below [`folder`].
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Uml => "uml",
            Self::Qemu => "qemu",
            Self::Linux6_1 => "linux-6.1",
            Self::Linux6_12 => "linux-6.12",
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::Tools => "the first process of a guest, and what loads its modules",
            Self::Uml => "a Linux 6.1 that runs as a process, with IPVS and SCTP, which this machine's kernel may lack",
            Self::Qemu => "the machine that a stock kernel boots on",
            Self::Linux6_1 => "Debian 12's kernel, to test on",
            Self::Linux6_12 => "a newer kernel (of Debian 12's backports), to test on",
        }
    }

    /// What to ask apt for; of a pattern, the newest.
    fn wanted(self) -> &'static [&'static str] {
        match self {
            Self::Tools => &["busybox-static", "kmod"],
            Self::Uml => &["user-mode-linux"],
            Self::Qemu => &["qemu-system-x86"],
            // Not the cloud kernels: they have no 9p.
            Self::Linux6_1 => &[r"^linux-image-6\.1\.[0-9.-]+-amd64$"],
            Self::Linux6_12 => &[r"^linux-image-6\.12\.[0-9]+\+deb12-amd64$"],
        }
    }
}

/// Where the packages are: of the user, and not of a clone, as they are the same for each.
pub(super) fn folder() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
    Ok(cache.context("there is no HOME to keep the guest's packages in")?.join("tollgate-vm"))
}

/// Makes sure that a kernel's packages are there, and says how long that took. Says nothing else when they are.
pub(crate) fn ensure(kernel: Kernel, yes: bool) -> Result<Duration> {
    let start = Instant::now();
    let folder = folder()?;
    let missing = || -> Vec<Set> {
        let sets = kernel.sets().iter().copied();
        sets.filter(|set| !folder.join(set.name()).is_dir()).collect()
    };
    if missing().is_empty() {
        return Ok(start.elapsed());
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _lock = lock(&folder)?;
    // Another command may have been at it meanwhile.
    let missing = missing();
    if missing.is_empty() {
        return Ok(start.elapsed());
    }
    for program in ["apt-get", "dpkg-deb"] {
        ensure!(
            crate::setup::find(program).is_some(),
            "a guest's packages are Debian's, and there is no {program} here"
        );
    }
    eprintln!("setup: a guest with the kernel {} needs, unpacked into {}", kernel.name(), folder.display());
    for set in &missing {
        eprintln!("  {}: {}", set.name(), set.why());
    }
    confirm("Download and unpack these (nothing is installed)?", yes)?;
    let apt = Apt::update(&folder, missing.contains(&Set::Linux6_12))?;
    for set in missing {
        apt.unpack(set, &folder.join(set.name()))?;
    }
    Ok(start.elapsed())
}

/// [`folder`], if there is anything in it.
pub(crate) fn unpacked() -> Result<Option<PathBuf>> {
    Ok(Some(folder()?).filter(|folder| folder.exists()))
}

/// Removes every package again.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    let _lock = lock(folder)?;
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

fn lock(folder: &Path) -> Result<Flock<fs::File>> {
    let path = folder.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", path.display()))
}

/// Apt with sources and lists of its own, which go with it.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Reads the lists of the machine's own mirror.
    fn update(folder: &Path, backports: bool) -> Result<Self> {
        // Whoever holds the lock is alone: a folder that is there is of a command that was killed.
        let own = folder.join("apt");
        if own.exists() {
            fs::remove_dir_all(&own).with_context(|| format!("cannot remove {}", own.display()))?;
        }
        fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
        let apt = Self { folder: own };
        fs::write(apt.sources(), sources(&machine_sources()?, backports)?)?;
        fs::create_dir_all(apt.folder.join("lists/partial"))?;
        fs::create_dir_all(apt.folder.join("cache/archives/partial"))?;
        eprintln!("setup: reads package lists");
        apt.run("apt-get", &["update"])?;
        Ok(apt)
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    /// Downloads a set's packages and unpacks them into a folder, which is there whole or not at all.
    fn unpack(&self, set: Set, target: &Path) -> Result<()> {
        let packages = self.packages(set)?;
        eprintln!("setup: downloads and unpacks {}", packages.iter().cloned().collect::<Vec<_>>().join(" "));
        let partial = self.folder.join(set.name());
        let downloads = self.folder.join(format!("{}.download", set.name()));
        fs::create_dir_all(&partial)?;
        fs::create_dir_all(&downloads)?;
        let names = packages.iter().map(String::as_str);
        self.run_in("apt-get", &["download"].into_iter().chain(names).collect::<Vec<_>>(), &downloads)?;
        for package in fs::read_dir(&downloads)? {
            let package = package?.path();
            let status = Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&partial).status();
            let is_ok = status.context("cannot run dpkg-deb")?.success();
            ensure!(is_ok, "dpkg-deb cannot unpack {}", package.display());
        }
        finish(set, &partial, &target.with_file_name(Set::Tools.name()))
            .with_context(|| format!("the unpacked {} is not as expected", set.name()))?;
        fs::rename(&partial, target).with_context(|| format!("cannot make {}", target.display()))
    }

    /// The packages of a set, with all that they depend on and this machine does not have.
    fn packages(&self, set: Set) -> Result<BTreeSet<String>> {
        let wanted = set.wanted().iter().map(|name| self.newest(name)).collect::<Result<Vec<_>>>()?;
        let mut packages: BTreeSet<String> = wanted.iter().cloned().collect();
        // A kernel's dependencies are for a machine that installs it.
        if matches!(set, Set::Tools | Set::Uml | Set::Qemu) {
            let names = wanted.iter().map(String::as_str);
            let args: Vec<&str> =
                ["install", "--simulate", "--no-install-recommends"].into_iter().chain(names).collect();
            packages.extend(installed_by(&self.run("apt-get", &args)?));
        }
        Ok(packages)
    }

    /// The newest package whose name matches a pattern; a plain name is itself.
    fn newest(&self, pattern: &str) -> Result<String> {
        if !pattern.starts_with('^') {
            return Ok(pattern.to_owned());
        }
        let found = self.run("apt-cache", &["search", "--names-only", pattern])?;
        let names = found.lines().filter_map(|line| line.split_whitespace().next());
        let newest = names.max_by_key(|name| version(name));
        Ok(newest.with_context(|| format!("apt has no package {pattern}"))?.to_owned())
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.run_in(program, args, &self.folder)
    }

    fn run_in(&self, program: &str, args: &[&str], folder: &Path) -> Result<String> {
        let option = |name: &str, value: &Path| -> OsString {
            let mut option = OsString::from(format!("{name}="));
            option.push(value);
            option
        };
        let own = &self.folder;
        let mut command = Command::new(program);
        for option in [
            option("Dir::Etc::SourceList", &self.sources()),
            option("Dir::Etc::SourceParts", Path::new("/dev/null")),
            option("Dir::State::Lists", &own.join("lists")),
            option("Dir::Cache", &own.join("cache")),
            // Apt's own user could not write into the caller's folder.
            option("APT::Sandbox::User", Path::new("root")),
        ] {
            command.arg("-o").arg(option);
        }
        let output = command
            .args(["--quiet", "--quiet"])
            .args(args)
            .current_dir(folder)
            .env("LC_ALL", "C")
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("`{program} {}` failed: {}", args.join(" "), words.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        // What stays goes with the next one.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What this machine's apt reads, as `URI SUITE` a line.
fn machine_sources() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
        .output()
        .context("cannot run apt-get")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A list of sources of [`RELEASE`] from the mirrors that the machine uses.
fn sources(machine: &str, backports: bool) -> Result<String> {
    let known = |suite: &str| {
        let lines = machine.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(_, its)| *its == suite).map(|(uri, _)| uri).next()
    };
    let main = known(RELEASE).with_context(|| {
        format!("this machine's apt has no source of the suite {RELEASE}, from which guests are made")
    })?;
    let mut list = format!("deb {main} {RELEASE} main\n");
    for suite in [format!("{RELEASE}-updates"), format!("{RELEASE}-security")] {
        if let Some(uri) = known(&suite) {
            list += &format!("deb {uri} {suite} main\n");
        }
    }
    if backports {
        list += &format!("deb {main} {RELEASE}-backports main\n");
    }
    Ok(list)
}

/// The packages that apt-get would install, by what it says of them (`Inst NAME (VERSION ...)`).
fn installed_by(simulation: &str) -> impl Iterator<Item = String> {
    let names = simulation.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    names.map(str::to_owned)
}

/// The numbers in a package's name, which order kernels.
fn version(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Makes an unpacked set usable where it is.
fn finish(set: Set, folder: &Path, tools: &Path) -> Result<()> {
    match set {
        Set::Tools => {
            // kmod goes by the name that it is called by; the package's links are absolute.
            for name in ["modprobe", "depmod"] {
                let link = folder.join("sbin").join(name);
                fs::remove_file(&link)?;
                symlink("../bin/kmod", &link)?;
            }
            ensure!(folder.join("bin/busybox").is_file(), "there is no bin/busybox");
        }
        Set::Uml => {
            // modprobe looks below lib/modules.
            fs::create_dir_all(folder.join("lib"))?;
            symlink("../usr/lib/uml/modules", folder.join("lib/modules"))?;
            ensure!(folder.join("usr/bin/linux.uml").is_file(), "there is no usr/bin/linux.uml");
        }
        Set::Qemu => {
            ensure!(folder.join("usr/bin/qemu-system-x86_64").is_file(), "there is no usr/bin/qemu-system-x86_64");
        }
        Set::Linux6_1 | Set::Linux6_12 => initrd::make(folder, tools)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_of_the_machines_own_mirror() {
        let machine =
            "http://mirror/debian/ bookworm\nhttp://mirror/security/ bookworm-security\nhttp://other/ nodistro\n";
        let list = sources(machine, true).expect("it has the release");
        let expected = "deb http://mirror/debian/ bookworm main\n\
            deb http://mirror/security/ bookworm-security main\n\
            deb http://mirror/debian/ bookworm-backports main\n";
        assert_eq!(list, expected);
        assert!(!sources(machine, false).expect("it has the release").contains("backports"));
        let error = sources("http://mirror/debian/ trixie\n", false).expect_err("another release");
        assert!(error.to_string().contains("no source of the suite bookworm"), "{error}");
    }

    #[test]
    fn what_apt_would_install_is_told_from_what_it_would_remove() {
        let text = "NOTE: This is only a simulation!\nRemv qemu-utils [1:10.0]\nInst seabios (1.16 Debian [all])\nConf seabios (1.16)\n";
        assert_eq!(installed_by(text).collect::<Vec<_>>(), ["seabios"]);
    }

    #[test]
    fn the_newest_kernel_is_by_number() {
        let newest =
            ["linux-image-6.1.0-9-amd64", "linux-image-6.1.0-56-amd64"].into_iter().max_by_key(|name| version(name));
        assert_eq!(newest, Some("linux-image-6.1.0-56-amd64"));
    }
}

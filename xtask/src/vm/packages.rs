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

use super::Kernel;
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
}

impl Kernel {
    fn sets(self) -> &'static [Set] {
        match self {
            Self::Uml => &[Set::Tools, Set::Uml],
        }
    }
}

impl Set {
    /// Its folder below [`folder`].
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Uml => "uml",
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::Tools => "the first process of a guest, and what loads its modules",
            Self::Uml => "a Linux 6.1 that runs as a process, with IPVS and SCTP, which this machine's kernel may lack",
        }
    }

    /// What to ask apt for.
    fn wanted(self) -> &'static [&'static str] {
        match self {
            Self::Tools => &["busybox-static", "kmod"],
            Self::Uml => &["user-mode-linux"],
        }
    }
}

/// Where the packages are: of the user, and not of a clone, as they are the same for each.
pub(crate) fn folder() -> Result<PathBuf> {
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
    let apt = Apt::update(&folder)?;
    for set in missing {
        apt.unpack(set, &folder.join(set.name()))?;
    }
    Ok(start.elapsed())
}

/// Removes every package again. Says what it did.
pub(crate) fn remove() -> Result<bool> {
    let folder = folder()?;
    if !folder.exists() {
        return Ok(false);
    }
    println!("setup: removes {}", folder.display());
    let lock = lock(&folder)?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    drop(lock);
    Ok(true)
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
    folder: tempfile::TempDir,
}

impl Apt {
    /// Reads the lists of the machine's own mirror.
    fn update(folder: &Path) -> Result<Self> {
        let apt = Self { folder: tempfile::Builder::new().prefix("apt-").tempdir_in(folder)? };
        fs::write(apt.sources(), sources(&machine_sources()?)?)?;
        fs::create_dir_all(apt.folder.path().join("lists/partial"))?;
        fs::create_dir_all(apt.folder.path().join("cache/archives/partial"))?;
        eprintln!("setup: reads package lists");
        apt.run("apt-get", &["update"])?;
        Ok(apt)
    }

    fn sources(&self) -> PathBuf {
        self.folder.path().join("sources.list")
    }

    /// Downloads a set's packages and unpacks them into a folder, which is there whole or not at all.
    fn unpack(&self, set: Set, target: &Path) -> Result<()> {
        let packages = self.packages(set)?;
        eprintln!("setup: downloads and unpacks {}", packages.iter().cloned().collect::<Vec<_>>().join(" "));
        let partial = self.folder.path().join(set.name());
        let downloads = self.folder.path().join(format!("{}.download", set.name()));
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
        finish(set, &partial).with_context(|| format!("the unpacked {} is not as expected", set.name()))?;
        fs::rename(&partial, target).with_context(|| format!("cannot make {}", target.display()))
    }

    /// The packages of a set, with all that they depend on and this machine does not have.
    fn packages(&self, set: Set) -> Result<BTreeSet<String>> {
        let mut packages: BTreeSet<String> = set.wanted().iter().map(|&name| name.to_owned()).collect();
        let args = [&["install", "--simulate", "--no-install-recommends"], set.wanted()].concat();
        packages.extend(installed_by(&self.run("apt-get", &args)?));
        Ok(packages)
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.run_in(program, args, self.folder.path())
    }

    fn run_in(&self, program: &str, args: &[&str], folder: &Path) -> Result<String> {
        let option = |name: &str, value: &Path| -> OsString {
            let mut option = OsString::from(format!("{name}="));
            option.push(value);
            option
        };
        let own = self.folder.path();
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

/// What this machine's apt reads, as `URI SUITE` a line.
fn machine_sources() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
        .output()
        .context("cannot run apt-get")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A list of sources of [`RELEASE`] from the mirrors that the machine uses.
fn sources(machine: &str) -> Result<String> {
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
    Ok(list)
}

/// The packages that apt-get would install, by what it says of them (`Inst NAME (VERSION ...)`).
fn installed_by(simulation: &str) -> impl Iterator<Item = String> {
    let names = simulation.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    names.map(str::to_owned)
}

/// Makes an unpacked set usable where it is.
fn finish(set: Set, folder: &Path) -> Result<()> {
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
    }
    Ok(())
}

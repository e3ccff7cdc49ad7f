//! The toolchain of the eBPF programs. Their target has no prebuilt library: it is built with them, from the compiler's own
//! source, and linked by a linker of the compiler's LLVM. So three things must match, and are pinned together here.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::find;
use super::packages;
use crate::build;

/// The newest compilers of LLVM 22 that each way has. 1.97 by rustup, 1.96 by Debian.
const NIGHTLY: &str = "nightly-2026-05-20";
const LLVM: &str = "22";
const LINKER: &str = "0.13.0";

/// Debian's compiler, with the source of its library and the cargo that belongs to it.
const COMPILER_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "libstd-rust-web-dev"];
/// What the linker is built with.
const LLVM_PACKAGES: [&str; 5] = ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev", "libxml2-dev"];
/// Where Debian puts that LLVM.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A compiler, its cargo and a linker that fit.
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

struct Compiler {
    name: String,
    /// The folder with `rustc` and `cargo`.
    bin: PathBuf,
}

impl Toolchain {
    /// What is on this machine.
    pub(crate) fn find() -> Option<Self> {
        Some(Self { compiler: Compiler::find()?, linker: find_linker()? })
    }

    /// Which compiler it is.
    pub(crate) fn name(&self) -> &str {
        &self.compiler.name
    }

    /// The cargo that builds the programs. Nothing of the cargo that runs this command reaches it.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(self.compiler.bin.join("cargo"));
        let is_ours = |name: &OsString| {
            let name = name.to_string_lossy();
            ["CARGO", "RUST"].iter().any(|prefix| name.starts_with(prefix))
                && name != "CARGO_HOME"
                && name != "RUSTUP_HOME"
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
            command.env_remove(name);
        }
        command
            .env("RUSTC", self.compiler.bin.join("rustc"))
            // `-Z build-std` is for nightly compilers only, unless one asks.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        command
    }
}

impl Compiler {
    fn find() -> Option<Self> {
        Self::of_rustup().or_else(Self::of_debian)
    }

    fn of_rustup() -> Option<Self> {
        find("rustup")?;
        let mut command = Command::new("rustup");
        // Newer ones would install what is asked for, without being told to.
        command.args(["run", NIGHTLY, "rustc", "--print", "sysroot"]).env("RUSTUP_AUTO_INSTALL", "0");
        let output = command.output().ok().filter(|output| output.status.success())?;
        let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        Self::at(format!("rustup's {NIGHTLY}"), &sysroot)
    }

    fn of_debian() -> Option<Self> {
        let compiler = Self::at("Debian's rustc".to_owned(), Path::new("/usr"))?;
        let output = Command::new(compiler.bin.join("rustc")).arg("-vV").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let llvm = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
        (llvm.split('.').next() == Some(LLVM)).then_some(compiler)
    }

    /// The one under a folder, if it is there with the source of its library.
    fn at(name: String, sysroot: &Path) -> Option<Self> {
        let bin = sysroot.join("bin");
        let has_source = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file();
        (has_source && bin.join("rustc").is_file() && bin.join("cargo").is_file()).then_some(Self { name, bin })
    }
}

/// What is missing, a line each; nothing where the toolchain is whole.
pub(super) fn missing() -> Vec<String> {
    let mut lines = Vec::new();
    if Compiler::find().is_none() {
        let packages = COMPILER_PACKAGES.join(" ");
        lines.push(format!(
            "a compiler with the source of its library (rustup toolchain {NIGHTLY} with rust-src, or else the Debian packages \
             {packages}): the eBPF programs' target has no prebuilt library"
        ));
    }
    if find_linker().is_none() {
        let packages = LLVM_PACKAGES.join(" ");
        lines.push(format!(
            "bpf-linker {LINKER} (by cargo install, into {}; Debian packages {packages}): it links the eBPF programs",
            folder().display()
        ));
    }
    lines
}

/// Gets what is missing.
pub(super) fn install() -> Result<()> {
    if Compiler::find().is_none() {
        install_compiler()?;
    }
    if find_linker().is_none() {
        install_linker()?;
    }
    Ok(())
}

fn install_compiler() -> Result<()> {
    if find("rustup").is_some() {
        let args = ["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"];
        println!("setup: rustup {}", args.join(" "));
        let had_it = Command::new("rustup").args(["toolchain", "list"]).output();
        let had_it = had_it.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(NIGHTLY));
        let is_installed = Command::new("rustup").args(args).status().is_ok_and(|status| status.success());
        if !had_it && is_installed {
            fs::create_dir_all(folder())
                .and_then(|()| fs::write(record(), format!("{NIGHTLY}\n")))
                .with_context(|| format!("cannot write down in {} what was installed", record().display()))?;
        }
        if let Some(compiler) = Compiler::find() {
            println!("setup: the eBPF programs are built with {}", compiler.name);
            return Ok(());
        }
        println!("setup: rustup could not; so by Debian's packages");
    }
    packages::install(&COMPILER_PACKAGES)?;
    let compiler = Compiler::find().with_context(|| {
        format!("{} are installed, but are no compiler of LLVM {LLVM} with its source", COMPILER_PACKAGES.join(" "))
    })?;
    println!("setup: the eBPF programs are built with {}", compiler.name);
    Ok(())
}

fn install_linker() -> Result<()> {
    let prefix = std::env::var_os("LLVM_PREFIX").map_or_else(|| PathBuf::from(LLVM_PREFIX), PathBuf::from);
    if !prefix.join("bin/llvm-config").is_file() {
        packages::install(&LLVM_PACKAGES).with_context(|| {
            format!("bpf-linker needs LLVM {LLVM} with its headers; LLVM_PREFIX may name another place")
        })?;
    }
    let root = linker_root();
    let args = ["install", "bpf-linker", "--version", LINKER, "--locked", "--no-default-features", "--quiet"];
    println!("setup: cargo {} (some minutes)", args.join(" "));
    let mut command = build::cargo(&args);
    command.arg("--features").arg(format!("llvm-{LLVM}")).arg("--root").arg(&root);
    // The programs' folder may have a cargo configuration of its own, and a developer's RUSTFLAGS are not for this.
    let status = command
        .env("LLVM_PREFIX", prefix)
        .env_remove("CARGO_TARGET_DIR")
        .current_dir("/")
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("bpf-linker could not be installed: {status}");
    }
    find_linker().with_context(|| format!("bpf-linker is installed, but not found in {}", root.display()))?;
    Ok(())
}

/// Takes back what was installed here, but for packages. True where there was anything.
pub(super) fn remove() -> Result<()> {
    if let Ok(name) = fs::read_to_string(record()) {
        let name = name.trim();
        println!("setup: rustup toolchain uninstall {name}");
        let status = Command::new("rustup").args(["toolchain", "uninstall", name]).status();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            bail!("rustup could not uninstall {name}");
        }
    }
    match fs::remove_dir_all(folder()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder().display()))
        }
        _ => Ok(()),
    }
}

/// What [`remove`] would take back, in words; none where it is nothing.
pub(super) fn installed() -> Vec<String> {
    let mut what: Vec<String> =
        fs::read_to_string(record()).iter().map(|name| format!("rustup's {}", name.trim())).collect();
    if folder().is_dir() {
        what.push(folder().display().to_string());
    }
    what
}

fn find_linker() -> Option<PathBuf> {
    Some(linker_root().join("bin/bpf-linker")).filter(|file| file.is_file())
}

/// The version is in the name: a newer one is another folder.
fn linker_root() -> PathBuf {
    folder().join(format!("bpf-linker-{LINKER}-llvm-{LLVM}"))
}

/// Which toolchain of rustup's was installed here.
fn record() -> PathBuf {
    folder().join("rustup-toolchain")
}

/// Ours, for every clone of this user.
fn folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().unwrap_or_else(|| PathBuf::from("/root"));
    cache.unwrap_or_else(|| home().join(".cache")).join("tollgate-setup")
}

//! `cargo xtask ebpf`: the programs that the eBPF mode runs in the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::setup::{self, Toolchain};

#[path = "../../ebpf/object.rs"]
mod object;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/programs");

/// Build the programs that the eBPF mode runs in the kernel; `tollgate-proxy` embeds them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Check their format and lint them instead.
    #[arg(long)]
    check: bool,
    /// Have them tell the daemon's log what they do. It costs every connection: for debugging.
    #[arg(long, conflicts_with = "check")]
    log: bool,
    /// Do not ask before installing what is missing.
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.check {
        check()?;
    } else {
        setup::ensure_toolchain(args.yes)?;
        build(args.log)?;
        println!("{} is built", object::OBJECT);
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the programs are built, from the sources as they are now.
pub(crate) fn is_current() -> Result<bool> {
    object::is_current(Path::new(ROOT)).context("cannot read the eBPF programs' sources")
}

/// Builds them if they are not. The toolchain must be there.
pub(crate) fn ensure() -> Result<()> {
    if is_current()? { Ok(()) } else { build(false) }
}

/// Puts what is built into a copy of the tree as well.
pub(crate) fn copy_to(tree: &Path) -> Result<()> {
    for name in [object::OBJECT, object::RECORD] {
        let (from, to) = (Path::new(ROOT).join(name), tree.join(name));
        let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        if fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
        fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

fn build(with_log: bool) -> Result<()> {
    let root = Path::new(ROOT);
    let toolchain =
        Toolchain::find().context("there is no toolchain for the eBPF programs: run `cargo xtask setup`")?;
    // Before the build: a source that changes meanwhile makes the object an old one.
    let fingerprint = object::fingerprint(root).context("cannot read the eBPF programs' sources")?;
    let target = Path::new(PROGRAMS).join("target");
    let mut command = toolchain.cargo();
    command.args(["build", "--quiet", "--release", "--locked", "--target-dir"]).arg(&target).current_dir(PROGRAMS);
    if with_log {
        command.args(["--features", "log"]);
    }
    println!("building the eBPF programs with {} …", toolchain.name());
    let status = command.status().context("cannot run the cargo that builds the eBPF programs")?;
    if !status.success() {
        bail!("the eBPF programs could not be built: {status}");
    }
    let built = target.join("bpfel-unknown-none/release/tollgate");
    replace(
        &root.join(object::OBJECT),
        &fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?,
    )?;
    let options = if with_log { " log" } else { "" };
    replace(&root.join(object::RECORD), format!("{fingerprint}{options}\n").as_bytes())
}

/// Writes a file at once: who reads it meanwhile has the old one or the new.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh: PathBuf = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Format and lints, by the toolchain that the rest is checked with: for this machine's target, of which there is a prebuilt
/// library. The lints are the same, and nothing has to be installed.
fn check() -> Result<()> {
    let run = |args: &[&str]| {
        let mut command = build::cargo(args);
        command.current_dir(PROGRAMS).env_remove("CARGO_TARGET_DIR");
        let status = command.status().context("cannot run cargo")?;
        if !status.success() {
            bail!("`cargo {}` failed in ebpf/programs: {status}", args.join(" "));
        }
        Ok(())
    };
    run(&["fmt", "--check"])?;
    let host = host()?;
    for features in ["--no-default-features", "--all-features"] {
        run(&["clippy", "--quiet", "--locked", "--target", &host, features, "--", "--deny", "warnings"])?;
    }
    Ok(())
}

/// The target that cargo builds for here.
fn host() -> Result<String> {
    let output = build::cargo(&["--version", "--verbose"]).output().context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("cargo does not say which target it is for")
}

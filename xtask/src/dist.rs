//! `cargo xtask dist`: what is handed out, built small and static.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;

use crate::build;
use crate::setup::find;

/// Build the CNI plugin as it is installed on nodes: static, without a libc of the node's.
#[derive(clap::Args)]
pub(crate) struct Args {}

const PLUGIN: &str = "tollgate-cni";
/// How large the plugin may be: a runtime starts it several times for each pod.
const LARGEST: u64 = 3 << 20;
/// What the plugin must do without, because starting it would cost more than its work.
const FORBIDDEN: [&str; 3] = ["tokio", "k8s-openapi", "tollgate-model"];

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let plugin = build_plugin()?;
    println!("{} ({})", plugin.display(), ByteSize(plugin.metadata()?.len()));
    Ok(ExitCode::SUCCESS)
}

/// Builds the plugin, and says where it is.
pub(crate) fn build_plugin() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    ensure_target(&target)?;
    ensure_lean()?;
    build::run(&["build", "--quiet", "--package", PLUGIN, "--profile", "dist", "--target", &target])?;
    let folder = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let plugin = folder
        .join(&target)
        .join("dist")
        .join(PLUGIN)
        .canonicalize()
        .context("the plugin is not where it should be")?;
    let size = plugin.metadata()?.len();
    ensure!(size <= LARGEST, "{} has {}, and may have {}", plugin.display(), ByteSize(size), ByteSize(LARGEST));
    Ok(plugin)
}

/// The library for static programs, which rustup installs and Debian's compiler does not have.
fn ensure_target(target: &str) -> Result<()> {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output();
    let has_it = |folder: String| Path::new(folder.trim()).is_dir();
    if output
        .is_ok_and(|output| output.status.success() && has_it(String::from_utf8_lossy(&output.stdout).into_owned()))
    {
        return Ok(());
    }
    if find("rustup").is_none() {
        bail!("this compiler has no library for {target}, and there is no rustup to install it");
    }
    println!("setup: rustup target add {target}");
    let status = Command::new("rustup").args(["target", "add", target]).status().context("cannot run rustup")?;
    ensure!(status.success(), "`rustup target add {target}` failed: {status}");
    Ok(())
}

fn ensure_lean() -> Result<()> {
    let output = build::cargo(&["tree", "--package", PLUGIN, "--edges", "normal", "--prefix", "none"])
        .output()
        .context("cannot run cargo tree")?;
    ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout);
    for name in tree.lines().filter_map(|line| line.split(' ').next()) {
        ensure!(!FORBIDDEN.contains(&name), "{PLUGIN} depends on {name} now, which it must do without");
    }
    Ok(())
}

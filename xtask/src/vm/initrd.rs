//! The first file system of an emulated machine, from which it reaches the host's root.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Its name beside the kernel's `boot` and `lib`.
pub(super) const FILE: &str = "initrd";
const INIT: &str = include_str!("initrd.sh");
/// What it takes to mount the host's root, go above it, and write to the command's output.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_rng", "9pnet_virtio", "9p", "overlay", "virtio_console"];

/// Makes it for the one kernel whose package was unpacked to `linux`.
pub(super) fn make(linux: &Path, tools: &Path) -> Result<()> {
    let modules = linux.join("lib/modules");
    let version = fs::read_dir(&modules)?.flatten().next().context("the kernel has no modules")?.file_name();
    let version = version.to_str().context("a kernel version that is no text")?;
    kmod(tools, "depmod", &["-b", &linux.to_string_lossy(), version])?;

    let scratch = tempfile::tempdir_in(linux)?;
    let root = scratch.path();
    for name in ["bin", "modules", "proc", "dev", "root"] {
        fs::create_dir(root.join(name))?;
    }
    fs::copy(tools.join("bin/busybox"), root.join("bin/busybox"))?;
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    for (index, module) in files(linux, tools, version)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let plain = name.trim_end_matches(".xz");
        let target = root.join(format!("modules/{index:02}-{plain}"));
        if plain == name {
            fs::copy(module, target)?;
        } else {
            let text = busybox(tools, &["xz", "-dc", &module.to_string_lossy()], root, b"")?;
            fs::write(target, text)?;
        }
    }
    let names = busybox(tools, &["find", "."], root, b"")?;
    fs::write(linux.join(FILE), busybox(tools, &["cpio", "-o", "-H", "newc"], root, &names)?)?;
    Ok(())
}

/// The modules' files, each after those that it needs.
fn files(linux: &Path, tools: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let args = ["-d", &linux.to_string_lossy(), "-S", version, "--show-depends", module];
        let text = kmod(tools, "modprobe", &args)?;
        // `insmod FILE OPTIONS`, or `builtin NAME`
        let lines = text.lines().filter_map(|line| line.strip_prefix("insmod ")?.split(' ').next());
        for file in lines.map(PathBuf::from) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// Runs kmod by one of its names.
fn kmod(tools: &Path, name: &str, args: &[&str]) -> Result<String> {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| tools.join(path));
    let output = Command::new(tools.join("bin/kmod"))
        .arg0(name)
        .args(args)
        .env("LD_LIBRARY_PATH", std::env::join_paths(libraries)?)
        .output()
        .context("cannot run kmod")?;
    if !output.status.success() {
        bail!("`{name} {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn busybox(tools: &Path, args: &[&str], folder: &Path, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tools.join("bin/busybox"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run busybox")?;
    // Short enough for the pipe.
    child.stdin.take().context("busybox has no stdin")?.write_all(input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "`busybox {}` failed: {}", args.join(" "), output.status);
    Ok(output.stdout)
}

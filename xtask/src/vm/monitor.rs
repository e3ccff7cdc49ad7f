//! The programs that a guest runs in.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::Kernel;
use super::guest::{FOLDER, Guest};
use super::packages::Set;

/// A program that a guest runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Monitor {
    /// User-mode Linux is its own monitor.
    Uml,
    /// QEMU, which translates the guest's code: KVM is no help inside many virtual machines.
    Qemu,
}

impl Kernel {
    pub(super) fn monitor(self) -> Monitor {
        match self {
            Self::Uml => Monitor::Uml,
            Self::V6_1 | Self::V6_12 => Monitor::Qemu,
        }
    }
}

impl Monitor {
    /// Its name in `init.sh`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
        }
    }

    /// What `init.sh` finds the guest's devices by for the command's standard output and standard error.
    pub(super) fn devices(self) -> [&'static str; 2] {
        match self {
            Self::Uml => ["/dev/ttyS0", "/dev/ttyS1"],
            Self::Qemu => ["stdout", "stderr"],
        }
    }

    /// The command that runs a guest, with the console on its stdout, and the guest's devices on two descriptors that it
    /// inherits.
    pub(super) fn command(self, guest: &Guest, devices: [BorrowedFd<'_>; 2]) -> Result<Command> {
        let devices = devices.map(|fd| fd.as_raw_fd());
        let mut command = match self {
            Self::Uml => uml(guest, devices),
            Self::Qemu => qemu(guest, devices)?,
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }
}

/// On the kernel's command line: little noise, and a panic ends the guest at once, as an oops does.
const QUIET: [&str; 4] = ["quiet", "loglevel=3", "panic=-1", "oops=panic"];

fn uml(guest: &Guest, [stdout, stderr]: [RawFd; 2]) -> Command {
    let mut command = Command::new(packages(Set::Uml).join("usr/bin/linux.uml"));
    command
        .arg(format!("mem={}M", guest.memory))
        .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"])
        .arg(format!("init={FOLDER}/init"))
        .args(["con=null", "con0=fd:0,fd:1", "ssl=null"])
        .arg(format!("ssl0=null,fd:{stdout}"))
        .arg(format!("ssl1=null,fd:{stderr}"))
        .arg(format!("uml_dir={FOLDER}"))
        .args(QUIET)
        // Its memory is a file there.
        .env("TMPDIR", "/run");
    command
}

fn qemu(guest: &Guest, [stdout, stderr]: [RawFd; 2]) -> Result<Command> {
    let (qemu, linux) = (packages(Set::Qemu), packages(guest.kernel.set()));
    let (libraries, boot) = (qemu.join("usr/lib/x86_64-linux-gnu"), linux.join("boot"));
    let image = std::fs::read_dir(&boot)
        .with_context(|| format!("cannot read {}", boot.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .with_context(|| format!("there is no vmlinuz in {}", boot.display()))?;
    let mut command = Command::new(qemu.join("usr/bin/qemu-system-x86_64"));
    command
        .env(
            "LD_LIBRARY_PATH",
            [&libraries, &qemu.join("lib/x86_64-linux-gnu")].map(|path| path.display().to_string()).join(":"),
        )
        .env("QEMU_MODULE_DIR", libraries.join("qemu"))
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-L")
        .arg(qemu.join("usr/share/qemu"))
        .arg("-L")
        .arg(qemu.join("usr/share/seabios"))
        // By far the quickest of the processors that can be emulated.
        .args(["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem", "-smp", "1"])
        .arg("-m")
        .arg(guest.memory.to_string())
        .args(["-serial", "stdio", "-device", "virtio-rng-pci"])
        .args(["-device", "virtio-serial-pci"])
        .args(["-chardev", &format!("file,id=stdout,path=/proc/self/fd/{stdout}")])
        .args(["-device", "virtserialport,chardev=stdout,name=stdout"])
        .args(["-chardev", &format!("file,id=stderr,path=/proc/self/fd/{stderr}")])
        .args(["-device", "virtserialport,chardev=stderr,name=stderr"])
        .args(shared("root", "/", ",readonly=on"))
        .args(shared("vm", FOLDER, ""))
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(linux.join(super::initrd::FILE))
        .arg("-append")
        .arg(format!("console=ttyS0 {} mitigations=off nokaslr random.trust_cpu=on", QUIET.join(" ")));
    Ok(command)
}

/// QEMU's words for a folder of the host that the guest mounts by a tag.
fn shared(tag: &str, path: &str, options: &str) -> [OsString; 4] {
    [
        "-fsdev".into(),
        format!("local,id={tag},path={path},security_model=none,multidevs=remap{options}").into(),
        "-device".into(),
        format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}").into(),
    ]
}

fn packages(set: Set) -> std::path::PathBuf {
    Path::new(FOLDER).join("packages").join(set.name())
}

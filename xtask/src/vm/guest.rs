//! One guest, from its files to its end.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::script::quoted;
use super::{Kernel, Verdict};

/// Where the guest's files are, outside and inside: on a file system in memory that goes with this process.
pub(super) const FOLDER: &str = "/run/tollgate-vm";
/// The first process of the guest.
const INIT: &str = include_str!("init.sh");
/// What it says on the console when the command starts.
const STARTED: &str = "tollgate-vm: the command starts";
/// How many lines of the console are kept for a person who wonders.
const CONSOLE_LINES: usize = 80;

/// What a guest is made of.
pub(super) struct Guest {
    pub(super) kernel: Kernel,
    /// In MiB.
    pub(super) memory: u32,
    /// The folder that it may write to.
    pub(super) share: PathBuf,
    /// Where the packages were unpacked.
    pub(super) packages: PathBuf,
    /// A shell script.
    pub(super) command: Vec<u8>,
}

/// What became of it.
pub(super) struct Run {
    pub(super) verdict: Verdict,
    /// When the command started.
    pub(super) started: Option<Instant>,
    /// The end of what the kernel and the first process have said.
    pub(super) console: VecDeque<String>,
}

/// What the console told.
#[derive(Default)]
struct Console {
    started: Option<Instant>,
    panic: Option<String>,
    end: VecDeque<String>,
}

impl Guest {
    /// Boots the guest, passes the command's output on, and waits for its end. Isolate this process first: mounts are changed.
    pub(super) fn run(&self, deadline: Duration) -> Result<Run> {
        self.lay_out()?;
        let (stdout, stdout_writer) = inherited_pipe()?;
        let (stderr, stderr_writer) = inherited_pipe()?;
        let monitor = self.kernel.monitor();
        let mut command = monitor.command(self, [stdout_writer.as_fd(), stderr_writer.as_fd()])?;
        let mut monitor = command.spawn().with_context(|| format!("cannot start {}", monitor.name()))?;
        drop((stdout_writer, stderr_writer));
        let stdout = thread::spawn(move || pass_on(stdout, io::stdout()));
        let stderr = thread::spawn(move || pass_on(stderr, io::stderr()));
        let console = watch_console(&mut monitor)?;
        let is_late = wait(&mut monitor, deadline)?;
        end_helpers()?;
        for thread in [stdout, stderr] {
            thread.join().map_err(|_| anyhow::anyhow!("a thread that passes output on has panicked"))?;
        }
        let console = console.join().map_err(|_| anyhow::anyhow!("the thread that reads the console has panicked"))?;
        let verdict = match (status()?, console.panic) {
            (Some(status), _) => Verdict::Exited(status),
            (None, _) if is_late => Verdict::DeadlinePassed,
            (None, Some(panic)) => Verdict::Panicked(panic),
            (None, None) => Verdict::Lost,
        };
        Ok(Run { verdict, started: console.started, console: console.end })
    }

    /// Writes the guest's files, and makes everything read-only but what it may write to: also what root inside mounts anew.
    fn lay_out(&self) -> Result<()> {
        set_read_only(Path::new("/"), true)?;
        set_read_only(Path::new("/run"), false)?;
        let folder = Path::new(FOLDER);
        for name in ["packages", "share", "stage"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("cannot make {FOLDER}/{name}"))?;
        }
        bind(&self.packages, &folder.join("packages"))?;
        bind(&self.share, &folder.join("share"))?;
        set_read_only(&folder.join("share"), false)?;
        fs::write(folder.join("settings"), self.settings())?;
        fs::write(folder.join("command"), &self.command)?;
        fs::write(folder.join("init"), INIT)?;
        let executable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(folder.join("init"), executable)?;
        Ok(())
    }

    /// What `init.sh` must know.
    fn settings(&self) -> Vec<u8> {
        let monitor = self.kernel.monitor();
        let [stdout, stderr] = monitor.devices();
        let mut text = Vec::new();
        for (name, value) in [
            ("MONITOR", OsStr::new(monitor.name())),
            ("KERNEL", OsStr::new(self.kernel.set().name())),
            ("SHARE", self.share.as_os_str()),
            ("STDOUT", OsStr::new(stdout)),
            ("STDERR", OsStr::new(stderr)),
            ("STARTED", OsStr::new(STARTED)),
        ] {
            text.extend([name.as_bytes(), b"=", &quoted(value), b"\n"].concat());
        }
        text
    }
}

/// Sets or clears the read-only flag of a mount in this mount namespace; sets it for all mounts below, too.
fn set_read_only(path: &Path, read_only: bool) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes()).context("a path with a NUL")?;
    let (set, clear, flags) =
        if read_only { (libc::MOUNT_ATTR_RDONLY, 0, libc::AT_RECURSIVE) } else { (0, libc::MOUNT_ATTR_RDONLY, 0) };
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a C string and the attributes have the size that is given; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            name.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result)
        .map(drop)
        .with_context(|| format!("cannot set whether {} is read-only (this takes Linux 5.12)", path.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount {} at {}", source.display(), target.display()))
}

/// A pipe whose writing end child processes inherit.
fn inherited_pipe() -> Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    fcntl(&writer, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot let a pipe be inherited")?;
    Ok((reader, writer))
}

/// Copies as it comes. When nobody wants more, everything ends, as a program ends that writes into a closed pipe.
fn pass_on(mut reader: PipeReader, mut writer: impl Write) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if writer.write_all(&buffer[..length]).and_then(|()| writer.flush()).is_err() {
                    std::process::exit(128 + libc::SIGPIPE);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Reads what the kernel, the first process and the monitor say.
fn watch_console(monitor: &mut Child) -> Result<JoinHandle<Console>> {
    let stdout = monitor.stdout.take().context("the monitor has no stdout")?;
    let stderr = monitor.stderr.take().context("the monitor has no stderr")?;
    let (sender, lines) = mpsc::channel();
    let send = sender.clone();
    thread::spawn(move || send_lines(stdout, &send));
    thread::spawn(move || send_lines(stderr, &sender));
    Ok(thread::spawn(move || {
        let mut console = Console::default();
        lines.iter().for_each(|line: String| console.add(line));
        console
    }))
}

fn send_lines(stream: impl Read, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        // The other end is there as long as this one.
        let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
}

impl Console {
    fn add(&mut self, line: String) {
        if line == STARTED {
            self.started.get_or_insert_with(Instant::now);
            return;
        }
        if let Some((_, words)) = line.split_once("Kernel panic - not syncing: ") {
            self.panic.get_or_insert_with(|| words.to_owned());
        }
        if !line.is_empty() {
            self.end.push_back(line);
        }
        if self.end.len() > CONSOLE_LINES {
            self.end.pop_front();
        }
    }
}

/// Waits for the monitor; true if it had to be ended at the deadline.
fn wait(monitor: &mut Child, deadline: Duration) -> Result<bool> {
    let pid = Pid::from_raw(i32::try_from(monitor.id())?);
    let (ended, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || match watch.recv_timeout(deadline) {
        // This pid namespace has few processes and ends with the guest: the pid is nobody else's.
        Err(RecvTimeoutError::Timeout) => kill(pid, Signal::SIGKILL).is_ok(),
        _ => false,
    });
    let status = monitor.wait().context("cannot wait for the monitor")?;
    drop(ended);
    let is_late = watchdog.join().map_err(|_| anyhow::anyhow!("the watchdog has panicked"))?;
    if !status.success() && !is_late {
        eprintln!("vm: the monitor ended with {status}");
    }
    Ok(is_late)
}

/// Ends what the monitor may have left: it would hold pipes open. Pid 1 of this namespace and this process stay.
fn end_helpers() -> Result<()> {
    ensure!(std::process::id() == 2, "this is not the first process of a pid namespace that `isolate` made");
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("cannot end the monitor's helpers"),
    }
}

/// The command's status, if it came to its end.
fn status() -> Result<Option<u8>> {
    match fs::read_to_string(Path::new(FOLDER).join("status")) {
        Ok(text) => Ok(Some(text.trim().parse().with_context(|| format!("`{}` is not a status", text.trim()))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("cannot read the command's status"),
    }
}

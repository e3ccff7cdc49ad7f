//! The real binary: a server process, and runs of the verbs.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_tollgate-controlplane");

/// A server process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) url: String,
    log: Arc<Mutex<String>>,
    /// Where it serves its metrics.
    pub(crate) metrics: Option<SocketAddr>,
    /// Reads the log to its end, or the server would block on a full pipe.
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a server over a directory and waits until it listens.
    pub(crate) fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[])
    }

    /// The same with more flags.
    pub(crate) fn start_with(data_dir: &Path, flags: &[&str]) -> Self {
        let mut command = command(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(data_dir).args(flags);
        // Tests run side by side, and the default is one address.
        if !flags.contains(&"--metrics-bind-address") {
            command.args(["--metrics-bind-address", ""]);
        }
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let mut metrics = None;
        let url = loop {
            let from = seen.len();
            assert_ne!(log.read_line(&mut seen).unwrap(), 0, "the server did not start: {seen}");
            if let Some((_, address)) = seen[from..].split_once("metrics are served on ") {
                metrics = Some(address.trim().parse().unwrap());
            }
            if let Some((_, rest)) = seen[from..].split_once("listening on ") {
                let scheme = if flags.contains(&"--tls-cert-file") { "https" } else { "http" };
                break format!("{scheme}://{}", rest.split_whitespace().next().unwrap());
            }
        };
        let shared = Arc::new(Mutex::new(seen));
        let into = shared.clone();
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            while log.read_line(&mut line).is_ok_and(|read| read > 0) {
                into.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        Process { child, url, log: shared, metrics, reader: Some(reader) }
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// SIGKILL: no chance to put anything in order.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal that does not end it.
    pub(crate) fn tell(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Sends a signal and waits for the end. Returns whether that was exit status 0, and the log.
    pub(crate) fn signal(mut self, signal: Signal) -> (bool, String) {
        self.tell(signal);
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status.success(), self.log())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary with the words, all its channels in the test's hands, and nothing of the tester's settings.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(words).env_remove("RUST_LOG");
    for name in ["SERVER", "CERTIFICATE_AUTHORITY", "CLIENT_CERTIFICATE", "CLIENT_KEY", "TOKEN_FILE"] {
        command.env_remove(format!("TOLLGATE_{name}"));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a verb to its end.
pub(crate) fn run(command: &mut Command, input: &str) -> (bool, String, String) {
    let mut child = command.spawn().unwrap();
    // A verb that does not read its input has closed it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.success(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

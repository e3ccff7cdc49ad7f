//! Real programs as child processes in a namespace, with what they log.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::NetNs;
use crate::poll::patience;

/// What a process wrote to stderr and stdout, line by line, over all its runs.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Every line so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a line contains `text`.
    pub fn contains(&self, text: &str) -> bool {
        self.lines().iter().any(|line| line.contains(text))
    }

    fn push(&self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Follows one of a process's outputs until it ends.
    fn follow(&self, output: impl Read + Send + 'static) -> Result<()> {
        let log = self.clone();
        thread::Builder::new()
            .name("lab-log".into())
            .spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    log.push(String::from_utf8_lossy(&line).into_owned());
                }
            })
            .context("can't start a thread")?;
        Ok(())
    }
}

/// How to run a program: may be started any number of times.
#[derive(Clone, Debug)]
pub struct Program {
    /// For people: `proxy of node-1`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Added to its environment.
    pub environment: Vec<(String, String)>,
    /// Where it runs.
    pub netns: NetNs,
}

/// A running program. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    program: Program,
    child: Child,
    log: Log,
}

impl Program {
    /// A command whose words are parted by blanks, found along PATH.
    pub fn words(command: &str, netns: &NetNs) -> Self {
        let mut words = command.split_whitespace().map(str::to_owned);
        let name = words.next().unwrap_or_default();
        let (path, arguments) = (PathBuf::from(&name), words.collect());
        Self { name, path, arguments, environment: Vec::new(), netns: netns.clone() }
    }

    /// Starts it; its lines go to `log`.
    pub fn start(&self, log: &Log) -> Result<Process> {
        let mut command = self.command();
        let mut child = self
            .netns
            .run(move || command.spawn())
            .with_context(|| format!("can't start {} ({})", self.name, self.path.display()))?;
        log.push(format!("--- pid {} started: {}", child.id(), self.arguments.join(" ")));
        log.follow(child.stderr.take().context("stderr is piped")?)?;
        log.follow(child.stdout.take().context("stdout is piped")?)?;
        Ok(Process { program: self.clone(), child, log: log.clone() })
    }

    /// Runs it to its end and returns its status and everything it wrote.
    pub fn run(&self) -> Result<(ExitStatus, String)> {
        let mut command = self.command();
        let output = self.netns.run(move || command.output()).with_context(|| format!("can't run {}", self.name))?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Spawned on the namespace's thread, the child inherits the namespace; and since the kernel sends the death signal
    /// when the *thread* ends that made the child, it must be one that lives as long as the child may.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        // SAFETY: between fork and exec the closure makes one system call, and allocates nothing.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        command
    }
}

impl Process {
    /// For people.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// Its pid, in the lab's pid namespace.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Fails if it has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait().context("can't ask for a process's status")? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}\n{}", self.program.name, tail(&self.log, 20)),
        }
    }

    /// `kill -9`, and waits for its end.
    pub fn kill9(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for its end; fails if it ends by anything but success.
    pub fn terminate(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait()?;
        let ended = status.code().map_or(format!("signal {:?}", status.signal()), |code| format!("status {code}"));
        ensure!(status.success(), "{} ended with {ended} upon SIGTERM", self.program.name);
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a pid is an i32")?);
        kill(pid, signal).with_context(|| format!("can't send {signal} to {}", self.program.name))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < patience() {
            if let Some(status) = self.child.try_wait().context("can't wait for a process")? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        bail!("{} does not end\n{}", self.program.name, tail(&self.log, 20))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended, and been waited for, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log, indented.
pub(crate) fn tail(log: &Log, count: usize) -> String {
    let lines = log.lines();
    let from = lines.len().saturating_sub(count);
    lines[from..].iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "    {line}");
        text
    })
}

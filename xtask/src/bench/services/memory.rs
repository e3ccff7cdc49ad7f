//! The memory of the proxy and of the programs that it runs, as the kernel has counted it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// How often children are looked for: most live for some milliseconds.
const PERIOD: Duration = Duration::from_millis(2);

/// The most that was held at one time, in KiB.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Memory {
    /// The proxy's.
    pub(super) proxy_kib: u64,
    /// Of the largest program that it ran.
    pub(super) children_kib: u64,
}

/// Looks at a process and its children until it is dropped.
pub(super) struct Watch {
    pid: u32,
    is_over: Arc<AtomicBool>,
    children_kib: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(pid: u32) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let children_kib = Arc::new(AtomicU64::new(0));
        let (over, most) = (is_over.clone(), children_kib.clone());
        let look = move || {
            while !over.load(Ordering::Relaxed) {
                for child in children(pid) {
                    // It may have ended by now.
                    most.fetch_max(peak(child).unwrap_or(0), Ordering::Relaxed);
                }
                std::thread::sleep(PERIOD);
            }
        };
        Self { pid, is_over, children_kib, thread: Some(std::thread::spawn(look)) }
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        let proxy_kib = peak(self.pid).context("the proxy's peak memory can't be read")?;
        Ok(Memory { proxy_kib, children_kib: self.children_kib.load(Ordering::Relaxed) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// `VmHWM`, the largest resident set so far (proc(5)).
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The children of all threads of a process (proc(5)).
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

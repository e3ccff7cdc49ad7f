//! Waiting for a condition, never for a time.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take to come true before the wait fails: long, since a busy machine is no failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// The environment variable that says how many times slower than a real one an emulated machine is.
const SLOWNESS: &str = "TOLLGATE_LAB_SLOWNESS";

/// [`PATIENCE`] on this machine.
pub(crate) fn patience() -> Duration {
    static SLOWNESS_HERE: OnceLock<u32> = OnceLock::new();
    let slowness = SLOWNESS_HERE.get_or_init(|| {
        let value = std::env::var(SLOWNESS).ok();
        value.map_or(1, |value| value.parse().unwrap_or_else(|_| panic!("{SLOWNESS}={value} is not a number")))
    });
    PATIENCE * *slowness
}

/// Calls `condition` until it says `Ok(value)`; fails with `what` and its last `Err` after half a minute, or as much longer
/// as the machine is slower (`TOLLGATE_LAB_SLOWNESS`).
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= patience() => {
                bail!("waited {} s for {what}: {error:#}", patience().as_secs());
            }
            Err(_) => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

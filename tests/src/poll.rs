//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take to come true before the wait fails: long, since a busy machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Calls `condition` until it says `Ok(value)`; fails with `what` and its last `Err` after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= PATIENCE => {
                bail!("waited {} s for {what}: {error:#}", PATIENCE.as_secs());
            }
            Err(_) => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

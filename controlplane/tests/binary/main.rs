//! The real binary: its verbs, its end by signals, and what is left after `kill -9`.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod backup;
mod cli;
mod crash;
mod disk_full;
mod metrics;
mod process;
mod security;
mod shutdown;

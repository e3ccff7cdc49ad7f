//! What the person who watches the demo sees.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use tollgate_lab::Counters;

/// The width of the longest bar.
const BAR: usize = 40;

/// How often a line of progress is drawn anew on a terminal, and written anew elsewhere.
const REDRAW: Duration = Duration::from_millis(200);
const REWRITE: Duration = Duration::from_secs(2);

/// Announces what comes now.
pub(super) fn heading(text: &str) {
    println!("\n▌ {text}");
}

/// Something that was done or seen.
pub(super) fn say(text: impl Display) {
    for line in text.to_string().lines() {
        println!("  {line}");
    }
}

/// Something that was promised, and is so.
pub(super) fn holds(text: impl Display) {
    println!("  ✓ {text}");
}

/// A bar for each endpoint, by how many connections it got.
pub(super) fn bars<'a>(counts: impl Iterator<Item = (&'a String, u64)> + Clone) {
    let most = counts.clone().map(|(_, count)| count).max().unwrap_or(0).max(1);
    for (name, count) in counts {
        let length = usize::try_from(count * BAR as u64 / most).unwrap_or(BAR);
        println!("  {name:>8} {} {count}", "█".repeat(length.max(1)));
    }
}

/// A line that says how a stream of connections goes, drawn over itself.
pub(super) struct Progress {
    is_terminal: bool,
    drawn: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { is_terminal: io::stdout().is_terminal(), drawn: None }
    }

    /// Shows the counters, if the last time is long enough ago.
    pub(super) fn show(&mut self, counters: &Counters) {
        let pause = if self.is_terminal { REDRAW } else { REWRITE };
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < pause) {
            return;
        }
        self.drawn = Some(Instant::now());
        let (started, failed, seconds) = (counters.started, counters.failures.len(), counters.elapsed.as_secs());
        let line = format!("  … {started} connections in {seconds} s, {failed} failed");
        if self.is_terminal {
            print!("\r{line}\x1b[K");
            let _ = io::stdout().flush();
        } else {
            println!("{line}");
        }
    }

    /// Takes the line away.
    pub(super) fn end(self) {
        if self.is_terminal && self.drawn.is_some() {
            print!("\r\x1b[K");
        }
    }
}

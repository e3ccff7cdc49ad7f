//! What was measured, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;

use super::change::Changes;
use super::connect::Connections;
use super::memory::Memory;
use super::scale::ColdStart;

/// The middle and the slow end of some times.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Percentiles {
    /// Half took no longer, in microseconds.
    pub(super) p50_us: f64,
    /// 99 in 100 took no longer, in microseconds.
    pub(super) p99_us: f64,
    /// How many there were.
    pub(super) count: usize,
}

impl Percentiles {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
        };
        Self { p50_us: at(50), p99_us: at(99), count: times.len() }
    }

    fn row(self, what: &str) {
        println!("  {what:48} {:>12} {:>12}", duration(self.p50_us), duration(self.p99_us));
    }
}

/// One mode at one size.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) mode: &'static str,
    pub(super) services: u32,
    pub(super) cold_start: ColdStart,
    pub(super) connections: Connections,
    pub(super) changes: Changes,
    pub(super) memory: Memory,
}

impl Measured {
    pub(super) fn print(&self) {
        println!("  {:48} {:>12} {:>12}", "", "p50", "p99");
        for (target, times) in &self.connections.by_target {
            times.row(&format!("connect, request, close: {target}"));
        }
        let changes = &self.changes;
        changes.update_from_request.row("one endpoint exchanged, from the request");
        changes.update_from_acknowledgement.row("the same, from the acknowledgement");
        changes.new_service_from_request.row("a new Service, then its slice, from the request");
        changes.new_service_from_acknowledgement.row("the same, from the last acknowledgement");
        changes.burst_from_request.row("50 changes, 64 writers, from the first request");
        changes.burst_from_acknowledgement.row("the same, from the last acknowledgement");
        println!(
            "  50 changes against one: {:.1} times from the request, {:.1} times from the acknowledgement",
            changes.burst_from_request.p50_us / changes.update_from_request.p50_us,
            changes.burst_from_acknowledgement.p50_us / changes.update_from_acknowledgement.p50_us
        );
        let ColdStart { to_last_service, to_applied } = self.cold_start;
        println!(
            "  cold start: the last Service answers after {:.2} s, everything is programmed after {:.2} s",
            to_last_service.as_secs_f64(),
            to_applied.as_secs_f64()
        );
        let Memory { proxy_kib, children_kib } = self.memory;
        println!("  peak memory: proxy {} MiB, its largest child {} MiB", proxy_kib / 1024, children_kib / 1024);
    }

    fn median(&self, target: &str) -> f64 {
        self.connections.by_target.get(target).map_or(f64::NAN, |times| times.p50_us)
    }
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    measured: Vec<Measured>,
}

impl Report {
    pub(super) fn add(&mut self, measured: Measured) {
        self.measured.push(measured);
    }

    /// How much more a connection costs at each mode's largest size than at its smallest. The machine may have been
    /// busier at one than at the other, so each is taken relative to the node without rules in the same turns.
    pub(super) fn print_growth(&self) {
        let mut modes: Vec<&str> = self.measured.iter().map(|measured| measured.mode).collect();
        modes.dedup();
        for mode in modes {
            let of_mode = || self.measured.iter().filter(|measured| measured.mode == mode);
            let (Some(small), Some(large)) =
                (of_mode().min_by_key(|it| it.services), of_mode().max_by_key(|it| it.services))
            else {
                continue;
            };
            if small.services == large.services {
                continue;
            }
            println!("\n{mode}: growth of the median from {} to {} Services", small.services, large.services);
            for target in ["direct", "first Service", "last Service", "random Service"] {
                let relative = |measured: &Measured| measured.median(target) / measured.median("no rules");
                println!("  {target:44} {:.3}", relative(large) / relative(small));
            }
        }
    }
}

fn duration(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = (1..=200).rev().map(Duration::from_micros).collect();
        let of = Percentiles::of(times);
        assert_eq!((of.p50_us.round(), of.p99_us.round(), of.count), (101.0, 199.0, 200));
        assert!(Percentiles::of(Vec::new()).p50_us.is_nan());
    }
}

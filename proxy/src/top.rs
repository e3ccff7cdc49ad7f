//! `tollgate-proxy top`: a live table of what goes through Services in mode ebpf.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tollgate_proxy::backend::ebpf::{Counter, Counters};

/// Rows of a table on a terminal; elsewhere it is whole.
const ROWS: usize = 40;

/// Prints a table each `interval`, `count` times or for ever.
pub(crate) fn run(bpf_root: &Path, interval: Duration, count: Option<u64>, endpoints: bool) -> Result<()> {
    let read = || -> Result<(Instant, Counters)> {
        let counters = Counters::read(bpf_root).context("cannot read what the mode ebpf counts")?;
        let Some(counters) = counters else {
            bail!(
                "there are no counters at {}: nothing is in mode ebpf here, or its --bpf-root is another",
                bpf_root.display()
            );
        };
        Ok((Instant::now(), counters))
    };
    let is_terminal = io::stdout().is_terminal();
    let mut before = read()?;
    let mut left = count;
    while left != Some(0) {
        thread::sleep(interval);
        let now = read()?;
        let seconds = now.0.duration_since(before.0).as_secs_f64();
        let mut text = table(&before.1, &now.1, seconds, endpoints);
        if is_terminal {
            let lines: Vec<_> = text.lines().take(ROWS).collect();
            // Clear the screen, and begin in its corner.
            text = format!("\x1b[2J\x1b[H{}\n", lines.join("\n"));
        }
        if !super::print(&text)? {
            break;
        }
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// Who has most new connections comes first, and among equals who has had most.
fn table(before: &Counters, now: &Counters, seconds: f64, endpoints: bool) -> String {
    let key = |it: &Counter| (it.name.clone(), it.protocol, it.family);
    let former: BTreeMap<_, _> = before.service_ports.iter().map(|it| (key(it), it)).collect();
    let mut rows: Vec<_> = now.service_ports.iter().map(|it| (it, former.get(&key(it)).copied())).collect();
    let new = |(it, former): &(&Counter, Option<&Counter>)| it.total().saturating_sub(former.map_or(0, Counter::total));
    rows.sort_by_key(|row| std::cmp::Reverse((new(row), row.0.total())));
    let width = rows.iter().map(|(it, _)| it.name.len()).max().unwrap_or(0).max(12);
    let mut text = format!(
        "{:<width$}   {:<8}   {:<6}   {:>8}   {:>12}   {:>9}   {:>12}   {:>12}\n",
        "SERVICE PORT", "PROTOCOL", "FAMILY", "NEW/S", "CONNECTIONS", "ENDPOINTS", "NO ENDPOINT", "UNKNOWN PORT",
    );
    for row in &rows {
        let (it, former) = row;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<width$}   {:<8}   {:<6}   {:>8.1}   {:>12}   {:>9}   {:>12}   {:>12}",
            it.name,
            it.protocol.to_string(),
            it.family.to_string(),
            rate(new(row), seconds),
            it.total(),
            it.connections.len(),
            it.no_endpoints,
            it.unknown_port,
        );
        for (endpoint, count) in it.connections.iter().filter(|_| endpoints) {
            let before = former.and_then(|former| former.connections.get(endpoint)).copied().unwrap_or(0);
            let address = endpoint.to_string();
            let rate = rate(count.saturating_sub(before), seconds);
            let _ = writeln!(text, "  {address:<w$}   {rate:>8.1}   {count:>12}", w = width + 18);
        }
    }
    if now.inconsistent > 0 {
        let _ = writeln!(text, "left to packets, because no whole entry could be read: {}", now.inconsistent);
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(f64::EPSILON)
}

#[cfg(test)]
mod tests {
    use tollgate_model::name::{IpFamily, Protocol};

    use super::*;

    fn counter(name: &str, connections: &[(&str, u64)]) -> Counter {
        Counter {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            family: IpFamily::V4,
            connections: connections.iter().map(|(endpoint, count)| (endpoint.parse().unwrap(), *count)).collect(),
            no_endpoints: 1,
            unknown_port: 2,
        }
    }

    #[test]
    fn the_busiest_service_comes_first() {
        let counters = |web, dns| Counters {
            service_ports: vec![
                counter("kube-system/dns", &[("10.0.0.1:53", dns)]),
                counter("shop/web", &[("10.0.0.2:80", web), ("10.0.0.3:80", 1)]),
            ],
            inconsistent: 0,
        };
        let text = table(&counters(100, 5000), &counters(400, 5010), 2.0, true);
        let expected = "\
SERVICE PORT      PROTOCOL   FAMILY      NEW/S    CONNECTIONS   ENDPOINTS    NO ENDPOINT   UNKNOWN PORT
shop/web          tcp        IPv4        150.0            401           2              1              2
  10.0.0.2:80                            150.0            400
  10.0.0.3:80                              0.0              1
kube-system/dns   tcp        IPv4          5.0           5010           1              1              2
  10.0.0.1:53                              5.0           5010
";
        assert!(text == expected, "{text}");
    }
}

//! The tests that this machine's kernel can't run, in a guest whose kernel can.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;

use super::tally::Tally;
use super::watch;
use crate::build;

/// Seconds after which a guest is ended: its tests end by themselves long before, or hang.
const DEADLINE: &str = "600";

/// Runs what was skipped for want of something in the kernel, and corrects the tally. What the guest's kernel can't run
/// either stays skipped.
pub(super) fn run(tally: &mut Tally) -> Result<()> {
    if tally.lacking.is_empty() {
        return Ok(());
    }
    let mut names_by_binary: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for trial in std::mem::take(&mut tally.lacking) {
        tally.skipped -= 1;
        names_by_binary.entry(trial.binary).or_default().push(trial.name);
    }
    for (binary, names) in names_by_binary {
        let filter = common_prefix(&names);
        println!("\nIn a guest, for {} tests of {}:", names.len(), binary.display());
        let mut guest = Tally::default();
        guest.begin(binary.clone());
        // By cargo: building the tests may have put another file in the place of this program's.
        let mut command = build::cargo(&["run", "--quiet", "--package", "xtask", "--"]);
        command.args(["vm", "--yes", "--deadline", DEADLINE, "--"]).arg(binary).arg("--color=never").arg(filter);
        let is_success = watch(command, &mut guest)?;
        if !is_success && guest.failed == 0 {
            eprintln!("error: the guest failed beyond the counted tests; see above");
            guest.failed = 1;
        }
        let tried = guest.passed + guest.failed + guest.skipped;
        if tried < u64::try_from(names.len())? {
            eprintln!("error: the guest tried {tried} tests of {}", names.len());
            guest.failed += 1;
        }
        tally.passed += guest.passed;
        tally.failed += guest.failed;
        tally.skipped += guest.skipped;
        tally.lacking.extend(guest.lacking);
        tally.durations.extend(guest.durations.into_iter().map(|(name, time)| (format!("{name}, in a guest"), time)));
    }
    Ok(())
}

/// What selects all of these, and little else: test binaries take one filter.
fn common_prefix(names: &[String]) -> &str {
    let first = names.first().map_or("", String::as_str);
    let is_common =
        |&end: &usize| first.is_char_boundary(end) && names.iter().all(|name| name.starts_with(&first[..end]));
    &first[..(0..=first.len()).rev().find(is_common).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::common_prefix;

    #[test]
    fn the_filter_is_what_names_have_in_common() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(common_prefix(&names(&["sctp::nftables::ipv4", "sctp::iptables::ipv6"])), "sctp::");
        assert_eq!(common_prefix(&names(&["sctp::nftables::ipv4"])), "sctp::nftables::ipv4");
        assert_eq!(common_prefix(&names(&["a", "b"])), "");
    }
}

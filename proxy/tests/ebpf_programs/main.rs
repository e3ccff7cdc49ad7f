//! The eBPF programs on the real kernel, by real sockets: what a process that dials meets, and what is left in the maps.
//!
//! `BPF_PROG_TEST_RUN` does not exist for programs of this type (`cg_sock_addr_prog_ops` in net/core/filter.c has no
//! `test_run`), so there is a cgroup of the test's own, to which the programs are attached, and servers in a network
//! namespace of its own.
//!
//! | file | what it owns |
//! |---|---|
//! | `world.rs` | addresses, the programs, and what is in the maps |
//! | `server.rs` | what answers |
//! | `dial.rs` | sockets of every kind, and what they meet |
//! | `table.rs` | one dial at a time: every kind of address by every kind of socket |
//! | `udp.rs`, `affinity.rs`, `bind.rs`, `stress.rs` | what takes more than one |

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

mod affinity;
mod bind;
mod dial;
mod server;
mod stress;
mod table;
mod udp;
mod world;

/// One test of a group.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    tollgate_lab::isolate();
    let missing = world::missing_privilege();
    match &missing {
        Some(reason) => eprintln!("skipped: {reason}"),
        None => world::prepare(),
    }
    let mut trials = table::trials();
    let groups: [&[Test]; 4] = [&udp::TESTS, &affinity::TESTS, &bind::TESTS, &stress::TESTS];
    trials.extend(groups.into_iter().flatten().map(|(name, test)| {
        Trial::test(*name, move || {
            test();
            Ok(())
        })
    }));
    // In CI, skips are failures.
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(missing.is_some())).collect();
    let mut arguments = Arguments::from_args();
    // All are in one cgroup, so that one's programs would meet another's sockets.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

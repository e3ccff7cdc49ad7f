//! A network namespace of its own for each test.

use libtest_mimic::Failed;
use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread that has a network namespace of its own; what it starts inherits that.
pub(crate) fn isolated(test: impl FnOnce() + Send + 'static) -> Result<(), Failed> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| {
            format!("cannot make a network namespace ({errno}): run as root, or under `unshare -rn`")
        })?;
        test();
        Ok::<_, String>(())
    });
    thread.join().map_err(|_| Failed::from("it panicked; see above"))?.map_err(Failed::from)
}

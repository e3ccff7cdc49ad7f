//! From a table of cases to a test binary.
//!
//! Each case becomes one trial for each mode and family, `rule::mode::family`. When one fails, its message has the end of
//! every program's log, and with `TOLLGATE_LAB_KEEP=1` the lab stays up, with a line for each namespace that enters it.

use std::any::Any;
use std::io::{self, BufRead};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::cluster::Cluster;
use crate::tollgate::Tollgate;

/// Runs trials in parallel as `cargo test` would, and prints what it prints.
///
/// Call [`isolate`](crate::isolate()) first.
pub fn run(trials: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A case waits for kernels and programs more than it computes, so there are more of them than processors.
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    arguments.test_threads.get_or_insert(2 * processors);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What a failed case is explained with.
pub trait Explain {
    /// The logs of its programs.
    fn logs(&self) -> String;
    /// How a person enters its namespaces.
    fn enter_commands(&self) -> String;
}

impl Explain for Cluster {
    fn logs(&self) -> String {
        String::new()
    }

    fn enter_commands(&self) -> String {
        self.enter_commands()
    }
}

impl Explain for Tollgate {
    fn logs(&self) -> String {
        self.logs()
    }

    fn enter_commands(&self) -> String {
        self.cluster().enter_commands()
    }
}

impl<L: Explain> Explain for Arc<L> {
    fn logs(&self) -> String {
        (**self).logs()
    }

    fn enter_commands(&self) -> String {
        (**self).enter_commands()
    }
}

/// Runs one case in a lab that is still there when it fails, also when it panics.
pub fn judge<L: Explain>(lab: &mut L, case: impl FnOnce(&mut L) -> Result<()>) -> Result<(), Failed> {
    let result = catch_unwind(AssertUnwindSafe(|| case(lab))).unwrap_or_else(|panic| Err(anyhow!(words(&*panic))));
    result.map_err(|error| {
        let logs = lab.logs();
        keep(lab, &error);
        format!("{error:#}\n{logs}").into()
    })
}

/// Waits for a person, if one has asked for it.
fn keep(lab: &impl Explain, error: &anyhow::Error) {
    if std::env::var_os("TOLLGATE_LAB_KEEP").is_some() {
        eprintln!("{error:#}\n{}The lab stays up until you press Enter.", lab.enter_commands());
        let _ = io::stdin().lock().read_line(&mut String::new());
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a word"))
}

/// A lab that several cases share: built by the first that wants it, gone with the last that holds it.
pub struct Shared<L> {
    build: Box<dyn Fn() -> Result<L> + Send + Sync>,
    /// What building it came to; a failure is told to every case.
    built: Mutex<Option<Result<Arc<L>, String>>>,
}

impl<L> Shared<L> {
    /// A lab that `build` will make.
    pub fn new(build: impl Fn() -> Result<L> + Send + Sync + 'static) -> Self {
        Self { build: Box::new(build), built: Mutex::new(None) }
    }

    /// The lab.
    pub fn get(&self) -> Result<Arc<L>> {
        // A panic while building leaves `None`, and the next case tries again.
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let result = built.get_or_insert_with(|| (self.build)().map(Arc::new).map_err(|error| format!("{error:#}")));
        result.clone().map_err(|error| anyhow!("the shared lab can't be built: {error}"))
    }
}

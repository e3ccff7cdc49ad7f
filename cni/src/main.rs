//! The plugin's binary: one call, from the environment and standard input to standard output.

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use tollgate_cni::env::Environment;
use tollgate_cni::verb;

/// Much more than any configuration has; GC's list of attachments is the longest part.
const STDIN: u64 = 16 << 20;

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let read = io::stdin().lock().take(STDIN).read_to_end(&mut stdin);
    let answer = verb::call(&Environment, read.map(|_| stdin));
    let mut stdout = io::stdout().lock();
    let written = answer.text.as_ref().map_or(Ok(()), |text| writeln!(stdout, "{text}"));
    match written {
        Ok(()) if answer.is_success => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tollgate-cni: cannot write the answer: {error}");
            ExitCode::FAILURE
        }
    }
}

//! `cargo xtask mutants`: breaks each rule on purpose, and asks whether its cases notice.
//!
//! Every line of [`list`] is one change of the proxy under the name of the rule that it breaks. Each is made in a scratch
//! copy of the tree, where the proxy alone is built, and the cases of that rule alone are run with it. A mutant that its
//! cases do not notice survives: then they do not prove what they are named for.

mod list;
mod tree;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::build;
use crate::setup::{self, Mode};
use list::{Mutant, WITHOUT, mutants};
use tree::Tree;

/// How much of what a mutant changes is shown in its line.
const SHOWN: usize = 100;

/// Break each rule in a copy of the tree and see whether its cases notice.
///
/// Each rule of Services has a mutant, a change of one place that breaks it, and another for each mode that has a line of
/// its own for that rule. A mutant of one mode is judged by that mode's cases, and one of what all modes share by those of
/// `--mode`. Cases whose rule has no mutant are named at the end, with the reason if there is one.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only mutants whose rule or file contains one of these.
    rules: Vec<String>,
    /// Which mode's cases judge the mutants of what all modes share.
    #[arg(long, default_value = "nftables")]
    mode: String,
    /// Which family's cases judge.
    #[arg(long, default_value = "ipv4")]
    family: String,
    /// Say what would be done, and whether every change still fits the tree.
    #[arg(long)]
    list: bool,
    /// Do not ask before installing what is missing.
    #[arg(long)]
    yes: bool,
}

/// What came of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// These cases failed.
    Caught(Vec<String>),
    Survived,
    /// It does not compile, so it says nothing.
    Unbuilt,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let is_meant = |mutant: &&Mutant| {
        let is_in = |word: &String| mutant.rule.contains(word.as_str()) || mutant.file.contains(word.as_str());
        args.rules.is_empty() || args.rules.iter().any(is_in)
    };
    let mutants: Vec<&Mutant> = mutants().filter(is_meant).collect();
    ensure!(!mutants.is_empty(), "no mutant's rule or file contains {:?}", args.rules);
    if args.list {
        mutants.iter().for_each(|mutant| println!("{mutant}"));
        return Ok(ExitCode::SUCCESS);
    }
    setup::ensure(Mode::All, args.yes)?;
    let tree = Tree::copy()?;
    println!("building the proxy as it is (the first time, with everything that it depends on) …");
    build::run(&["build", "--quiet", "--package", "tollgate-proxy", "--package", "tollgate-controlplane"])?;
    build::run(&["test", "--quiet", "--package", "tollgate-lab", "--test", "behaviour", "--no-run"])?;
    ensure!(tree.build()?, "the tree does not build as it is");
    check_unchanged(&mutants, args, &tree)?;

    let (mut caught, mut survivors, mut unbuilt) = (0, Vec::new(), 0);
    for mutant in &mutants {
        let start = Instant::now();
        let verdict = judge(mutant, args, &tree).with_context(|| mutant.to_string())?;
        let (word, by) = match &verdict {
            Verdict::Caught(by) => ("caught", format!(", by {}", by.join(", "))),
            Verdict::Survived => ("survived", String::new()),
            Verdict::Unbuilt => ("unbuilt", String::new()),
        };
        let line: String = mutant.to_string().replace('\n', " ").chars().take(SHOWN).collect();
        println!("{word:<9} {line} … ({:.0} s{by})", start.elapsed().as_secs_f64());
        match verdict {
            Verdict::Caught(_) => caught += 1,
            Verdict::Survived => survivors.push(mutant),
            Verdict::Unbuilt => unbuilt += 1,
        }
    }
    if args.rules.is_empty() {
        tell_cases_without()?;
    }
    survivors.iter().for_each(|mutant| println!("survivor: {mutant}"));
    println!("{} mutants: {caught} caught, {} survived, {unbuilt} did not build", mutants.len(), survivors.len());
    Ok(if caught == mutants.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says which cases no mutant is for.
fn tell_cases_without() -> Result<()> {
    let output = behaviour(&["--list"]).output().context("cannot run cargo")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let cases: BTreeSet<&str> = listed.lines().filter_map(|line| Some(line.split_once("::")?.0)).collect();
    for case in cases.into_iter().filter(|case| !mutants().any(|mutant| case.starts_with(mutant.rule))) {
        let reason = WITHOUT.iter().find(|(rule, _)| case.starts_with(rule)).map_or("nobody has said why", |it| it.1);
        println!("no mutant of {case}: {reason}");
    }
    Ok(())
}

/// Cases that fail anyhow would seem to catch everything.
fn check_unchanged(mutants: &[&Mutant], args: &Args, tree: &Tree) -> Result<()> {
    let mut rules: BTreeSet<(&str, &str)> = mutants.iter().map(|mutant| (mutant.rule, mode_of(mutant, args))).collect();
    println!("running the cases of {} rules on the tree as it is …", rules.len());
    if args.rules.is_empty() {
        // All of a mode at once share labs and time.
        rules = rules.into_iter().map(|(_, mode)| ("", mode)).collect();
    }
    for (rule, mode) in rules {
        let failed = failures(rule, mode, args, &tree.proxy())?;
        ensure!(failed.is_empty(), "on the tree as it is, {} fails", failed.join(", "));
    }
    Ok(())
}

fn judge(mutant: &Mutant, args: &Args, tree: &Tree) -> Result<Verdict> {
    let _changed = tree.change(mutant)?;
    if !tree.build()? {
        return Ok(Verdict::Unbuilt);
    }
    let failed = failures(mutant.rule, mode_of(mutant, args), args, &tree.proxy())?;
    Ok(if failed.is_empty() { Verdict::Survived } else { Verdict::Caught(failed) })
}

/// A mutant of one backend is judged by its own mode.
fn mode_of<'a>(mutant: &Mutant, args: &'a Args) -> &'a str {
    let is_in = |mode: &str| mutant.file.contains(&format!("/backend/{mode}/"));
    match tollgate_lab::Mode::ALL.iter().find(|mode| is_in(mode.proxy_mode())) {
        Some(mode) if !args.mode.starts_with(mode.proxy_mode()) => mode.name(),
        _ => &args.mode,
    }
}

/// Which cases of a rule fail with that proxy.
fn failures(rule: &str, mode: &str, args: &Args, proxy: &Path) -> Result<Vec<String>> {
    let mut command = behaviour(&[rule]);
    for other in tollgate_lab::Mode::ALL.iter().filter(|other| other.name() != mode) {
        command.arg("--skip").arg(format!("::{other}::"));
    }
    for family in tollgate_lab::Family::ALL.iter().map(ToString::to_string).filter(|other| *other != args.family) {
        command.arg("--skip").arg(format!("::{family}"));
    }
    let Output { status, stdout, stderr } =
        command.env("TOLLGATE_LAB_PROXY", proxy).stdin(Stdio::null()).output().context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&stdout);
    let Some((before, counts)) = text.split_once("test result: ") else {
        bail!("the cases of {rule} did not run:\n{text}\n{}", String::from_utf8_lossy(&stderr));
    };
    ensure!(!counts.contains(" 0 passed; 0 failed"), "no case is named {rule}");
    // Last before the result, below a line of their own, stand the names of those that failed.
    let (_, names) = before.rsplit_once("\nfailures:\n").unwrap_or_default();
    let failed: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    ensure!(failed.is_empty() == status.success(), "the cases of {rule} ended with {status}:\n{text}");
    Ok(failed)
}

/// The test binary of the cases.
fn behaviour(arguments: &[&str]) -> Command {
    let mut command = build::cargo(&["test", "--quiet", "--package", "tollgate-lab", "--test", "behaviour", "--"]);
    command.args(arguments);
    command
}

/// Runs a command and says whether it succeeded.
fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?.status.success())
}

//! `cargo xtask mutants`: breaks each rule on purpose, and asks whether its case notices.
//!
//! Every line of [`list`] is one change of the proxy under the name of the rule that it breaks. Each is made in a scratch
//! copy of the tree, where the proxy alone is built, and the cases of that rule alone are run with it. A mutant that its
//! cases do not notice survives: then they do not prove what they are named for.

mod list;
mod tree;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::build;
use crate::setup::{self, Mode};
use list::{MUTANTS, Mutant};
use tree::Tree;

/// Break each rule in a copy of the tree and see whether its cases notice.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only mutants whose rule contains one of these.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Caught,
    Survived,
    /// It does not compile, so it says nothing.
    Unbuilt,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let is_meant =
        |mutant: &&Mutant| args.rules.is_empty() || args.rules.iter().any(|rule| mutant.rule.contains(rule.as_str()));
    let mutants: Vec<&Mutant> = MUTANTS.iter().filter(is_meant).collect();
    ensure!(!mutants.is_empty(), "no mutant's rule contains {:?}", args.rules);
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

    let mut verdicts = Vec::new();
    for mutant in mutants {
        let start = Instant::now();
        let verdict = judge(mutant, args, &tree).with_context(|| mutant.to_string())?;
        println!("{:<9} {mutant} ({:.0} s)", format!("{verdict:?}").to_lowercase(), start.elapsed().as_secs_f64());
        verdicts.push(verdict);
    }
    let count = |wanted| verdicts.iter().filter(|verdict| **verdict == wanted).count();
    println!(
        "{} mutants: {} caught, {} survived, {} did not build",
        verdicts.len(),
        count(Verdict::Caught),
        count(Verdict::Survived),
        count(Verdict::Unbuilt)
    );
    Ok(if count(Verdict::Caught) == verdicts.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Cases that fail anyhow would seem to catch everything.
fn check_unchanged(mutants: &[&Mutant], args: &Args, tree: &Tree) -> Result<()> {
    let rules: BTreeSet<(&str, &str)> = mutants.iter().map(|mutant| (mutant.rule, mode_of(mutant, args))).collect();
    println!("running the cases of {} rules on the tree as it is …", rules.len());
    for (rule, mode) in rules {
        ensure!(passes(rule, mode, args, &tree.proxy())?, "the cases of {rule} fail on the tree as it is");
    }
    Ok(())
}

fn judge(mutant: &Mutant, args: &Args, tree: &Tree) -> Result<Verdict> {
    let _changed = tree.change(mutant)?;
    if !tree.build()? {
        return Ok(Verdict::Unbuilt);
    }
    let passed = passes(mutant.rule, mode_of(mutant, args), args, &tree.proxy())?;
    Ok(if passed { Verdict::Survived } else { Verdict::Caught })
}

/// A mutant of one backend is judged by its own mode.
fn mode_of<'a>(mutant: &Mutant, args: &'a Args) -> &'a str {
    let is_in = |mode: &str| mutant.file.contains(&format!("/backend/{mode}/"));
    match tollgate_lab::Mode::ALL.iter().find(|mode| is_in(mode.proxy_mode())) {
        Some(mode) if !args.mode.starts_with(mode.proxy_mode()) => mode.name(),
        _ => &args.mode,
    }
}

/// Whether the cases of a rule pass with that proxy.
fn passes(rule: &str, mode: &str, args: &Args, proxy: &Path) -> Result<bool> {
    let mut command =
        build::cargo(&["test", "--quiet", "--package", "tollgate-lab", "--test", "behaviour", "--", rule]);
    for other in tollgate_lab::Mode::ALL.iter().filter(|other| other.name() != mode) {
        command.arg("--skip").arg(format!("::{other}::"));
    }
    for family in tollgate_lab::Family::ALL.iter().map(ToString::to_string).filter(|other| *other != args.family) {
        command.arg("--skip").arg(format!("::{family}"));
    }
    command.env("TOLLGATE_LAB_PROXY", proxy);
    let output = command.stdin(Stdio::null()).output().context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((_, counts)) = text.split_once("test result: ") else {
        bail!("the cases of {rule} did not run:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    ensure!(!counts.contains(" 0 passed; 0 failed"), "no case is named {rule}");
    Ok(output.status.success())
}

/// Runs a command and says whether it succeeded.
fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?.status.success())
}

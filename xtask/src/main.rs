//! The developer's commands. `cargo xtask --help` is the manual.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod demo;
mod dist;
mod ebpf;
mod mutants;
mod setup;
mod test;
mod vm;

/// Tollgate's developer commands. Each does its own set-up first.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Args),
    Setup(setup::Args),
    Ebpf(ebpf::Args),
    Demo(demo::Args),
    Dist(dist::Args),
    Test(test::Args),
    Mutants(mutants::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Vm(args) => return vm::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

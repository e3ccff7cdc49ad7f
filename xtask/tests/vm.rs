//! `cargo xtask vm` as somebody uses it: real guests, of user-mode Linux.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

fn vm(flags: &[&str], command: &[&str]) -> Command {
    let mut xtask = Command::new(XTASK);
    xtask.args(["vm", "--yes"]).args(flags).arg("--").args(command).stdin(Stdio::null());
    xtask
}

fn run(flags: &[&str], command: &[&str]) -> Output {
    vm(flags, command).output().expect("xtask starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn target() -> PathBuf {
    Path::new(XTASK).ancestors().nth(2).expect("xtask is in target/PROFILE").to_owned()
}

#[test]
fn status_output_and_arguments_are_the_commands_own() {
    let words = ["a b", "q'uo\"te", "$HOME `x` \\", "new\nline", "", "*", "-n", "ü"];
    let script = "for word; do printf '<%s>' \"$word\"; done; echo no >&2; printf '\\0\\r\\n'; exit 7";
    let output = run(&[], &[&["sh", "-c", script, "sh"], words.as_slice()].concat());
    let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(stdout(&output), format!("{expected}\0\r\n"));
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("no\n"), "{}", stderr(&output));
    assert!(stderr(&output).contains("vm: kernel uml: packages "), "{}", stderr(&output));
}

#[test]
fn long_output_arrives_whole() {
    let output = run(&[], &["seq", "500000"]);
    let expected: String = (1..=500_000).map(|number| format!("{number}\n")).collect();
    assert!(stdout(&output) == expected, "{} bytes, {}", output.stdout.len(), stderr(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn root_is_thrown_away_and_the_target_folder_is_shared() {
    let file = target().join(format!("vm-test-{}", std::process::id()));
    let script =
        "set -e; id -u; test \"$(uname -r)\" != \"$1\"; echo x >/etc/tollgate-vm-test; cat /etc/tollgate-vm-test
        echo shared >\"$2\"
        mkdir /mnt/host; mount -t hostfs none /mnt/host -o /
        if touch /mnt/host/etc/tollgate-vm-test 2>/dev/null; then echo written; else echo refused; fi";
    let own_kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux has it");
    let output = run(&[], &["sh", "-c", script, "sh", own_kernel.trim(), &file.to_string_lossy()]);
    assert_eq!(stdout(&output), "0\nx\nrefused\n", "{}", stderr(&output));
    assert!(!Path::new("/etc/tollgate-vm-test").exists());
    assert_eq!(fs::read_to_string(&file).expect("the guest wrote it"), "shared\n");
    fs::remove_file(&file).expect("it is there");
}

#[test]
fn only_the_chosen_environment_is_passed() {
    let script = "printf '%s|%s|%s' \"$GIVEN\" \"$SET\" \"${KEPT-none}\"";
    let mut command = vm(&["--env", "GIVEN", "--env", "SET=x \"y\" 'z'=1"], &["sh", "-c", script]);
    let output = command.env("GIVEN", "a  b\n").env("KEPT", "secret").output().expect("xtask starts");
    assert_eq!(stdout(&output), "a  b\n|x \"y\" 'z'=1|none");

    let output = run(&["--env", "TOLLGATE_SURELY_UNSET"], &["true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("no such variable is set here"), "{}", stderr(&output));
}

#[test]
fn a_panic_is_told_with_the_end_of_the_console() {
    let output = run(&[], &["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"]);
    assert_eq!(output.status.code(), Some(125));
    let words = stderr(&output);
    assert!(words.contains("kernel panicked, while the command ran: sysrq triggered crash"), "{words}");
    assert!(words.contains("| Kernel panic - not syncing"), "{words}");
}

#[test]
fn a_guest_ends_at_its_deadline() {
    let output = run(&["--deadline", "5"], &["sleep", "600"]);
    assert_eq!(output.status.code(), Some(124), "{}", stderr(&output));
    assert!(stderr(&output).contains("ended at its deadline of 5 s"), "{}", stderr(&output));
}

#[test]
fn what_the_command_leaves_behind_ends_with_it() {
    let output = run(&[], &["sh", "-c", "sleep 600 & (sleep 600 >/dev/null &) ; echo done"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "done\n"), "{}", stderr(&output));
}

/// However xtask dies, the guest goes too. Its memory's size tells it from other guests.
#[test]
fn a_guest_ends_with_xtask() {
    for (signal, memory) in [("-KILL", "311"), ("-TERM", "312"), ("-INT", "313")] {
        let mut command = vm(&["--memory", memory], &["sh", "-c", "echo up; exec sleep 600"]);
        let mut xtask = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("xtask starts");
        let mut up = [0; 3];
        xtask.stdout.take().expect("piped").read_exact(&mut up).expect("the command says so");
        assert!(!monitors(memory).is_empty(), "the guest runs");
        let status = Command::new("sh").args(["-c", "kill $0 $1", signal, &xtask.id().to_string()]).status();
        assert!(status.expect("sh runs").success());
        assert!(!xtask.wait().expect("it is a child").success());
        let started = Instant::now();
        while !monitors(memory).is_empty() {
            assert!(started.elapsed() < Duration::from_secs(10), "{signal}: {:?} go on", monitors(memory));
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The processes of the guests with that much memory.
fn monitors(memory: &str) -> Vec<String> {
    let argument = format!("mem={memory}M");
    let processes = fs::read_dir("/proc").expect("Linux has it").flatten();
    processes
        .filter(|process| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            line.split(|&byte| byte == 0).any(|word| word == argument.as_bytes())
        })
        .map(|process| process.file_name().to_string_lossy().into_owned())
        .collect()
}

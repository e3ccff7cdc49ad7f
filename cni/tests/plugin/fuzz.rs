//! Whatever comes in standard input and `CNI_ARGS`: an answer as the specification has it, never a crash, and nothing made.
//!
//! The texts are drawn in-process, where tens of thousands of them take a second, and the seeds are fixed: a run is as long
//! each time, and a failure comes again.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;
use tollgate_cni::env::Variables;
use tollgate_cni::verb::call;

use crate::Case;
use crate::node::{Node, conf_with};

pub(crate) const CASES: &[Case] = &[
    ("any_input_is_answered", any_input_is_answered),
    ("any_input_is_answered_by_the_binary", any_input_by_the_binary),
];

const ROUNDS: u64 = 20_000;
const RUNS: u64 = 100;

struct Given(BTreeMap<&'static str, String>);

impl Variables for Given {
    fn get(&self, name: &'static str) -> Option<String> {
        self.0.get(name).filter(|value| !value.is_empty()).cloned()
    }
}

/// SplitMix64, so that the same seeds give the same texts in all versions of all crates.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap_or(1)).unwrap_or_default()
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

const ARGS: &[&str] = &[
    "",
    ";",
    "=",
    "IgnoreUnknown=1",
    "IgnoreUnknown=x",
    "IP=10.1.0.9",
    "IP=,,,",
    "MAC=x",
    "MAC=02:00:00:00:00:01",
    "K8S_POD_NAME=a",
    "K8S_POD_NAMESPACE=b",
    "\u{fffd}=\u{0}",
    "A==B",
    "IP=::1/129",
];
const NAMES: &[&str] = &["", "a", "eth0", "../x", "a b", "very-long-name-of-an-interface", "\u{1f980}", "lo", "."];
const VALUES: &[&str] = &[
    "null",
    "true",
    "0",
    "-1",
    "4294967296",
    "1e400",
    "\"\"",
    "\"x\"",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "[[{}]]",
    "\"10.1.0.0/8\"",
    "\"::/0\"",
    "{\"type\":\"\\u0000\"}",
    "{\"subnet\":\"0.0.0.0/0\"}",
    "{\"ranges\":[[{\"subnet\":\"::/1\"}]]}",
    "{\"cni\":{\"ips\":[1]}}",
    "{\"portMappings\":[{\"hostPort\":1}]}",
    "{\"bandwidth\":1}",
];

/// A configuration with some of its fields changed, or its text damaged.
fn text(random: &mut Random, base: &Value) -> Vec<u8> {
    let mut json = base.clone();
    const FIELDS: &[&str] = &[
        "cniVersion",
        "name",
        "bridge",
        "isGateway",
        "ipMasq",
        "ipMasqBackend",
        "mtu",
        "vlan",
        "ipam",
        "dns",
        "prevResult",
        "runtimeConfig",
        "args",
        "capabilities",
        "nonMasqueradeCIDRs",
        "macspoofchk",
        "cni.dev/valid-attachments",
    ];
    for _ in 0..random.below(4) {
        let value = serde_json::from_str::<Value>(random.pick::<&str>(VALUES)).unwrap_or(Value::Null);
        json[*random.pick(FIELDS)] = value;
    }
    let mut bytes = json.to_string().into_bytes();
    for _ in 0..random.below(3) {
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] = u8::try_from(random.below(256)).unwrap_or_default(),
            2 => bytes.insert(at, *random.pick(b"{}[]\",:\\\0\xff")),
            _ => {}
        }
    }
    bytes
}

fn base() -> Value {
    conf_with(|conf| conf["cniVersion"] = "1.1.0".into())
}

fn variables(random: &mut Random, verbs: &[&str]) -> Vec<(&'static str, String)> {
    let args: Vec<&str> = (0..random.below(4)).map(|_| *random.pick(ARGS)).collect();
    vec![
        ("CNI_COMMAND", (*random.pick(verbs)).to_owned()),
        ("CNI_CONTAINERID", (*random.pick(NAMES)).to_owned()),
        ("CNI_IFNAME", (*random.pick(NAMES)).to_owned()),
        // Nothing may be made: no namespace is there.
        ("CNI_NETNS", (*random.pick(&["", "/nowhere", "/etc/passwd"])).to_owned()),
        ("CNI_PATH", (*random.pick(&["", ":", "/nowhere:/usr/lib"])).to_owned()),
        ("CNI_ARGS", args.join(";")),
    ]
}

fn ensure_answered(is_success: bool, text: &str) -> Result<()> {
    if is_success {
        return Ok(());
    }
    let error: Value = serde_json::from_str(text)?;
    let is_error =
        error["code"].as_u64().is_some_and(|code| code > 0) && error["msg"].as_str().is_some_and(|msg| !msg.is_empty());
    ensure!(is_error && error["cniVersion"].is_string(), "{error}");
    Ok(())
}

fn any_input_is_answered() -> Result<()> {
    // ADD and CHECK end at the namespace; the verbs that change the node are left to the binary, on a node of its own.
    let base = base();
    for seed in 0..ROUNDS {
        let mut random = Random(seed);
        let given = variables(&mut random, &["ADD", "CHECK", "VERSION", "", "add"]).into_iter().collect();
        let answer = call(&Given(given), Ok(text(&mut random, &base)));
        ensure_answered(answer.is_success, answer.text.as_deref().unwrap_or_default())?;
    }
    Ok(())
}

fn any_input_by_the_binary() -> Result<()> {
    let node = Node::new("node")?;
    let base = base();
    let rules = node.command("nft list ruleset")?;
    for seed in ROUNDS..ROUNDS + RUNS {
        let mut random = Random(seed);
        let mut call = node.call("", &Value::Null);
        for (name, value) in variables(&mut random, &["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]) {
            call = call.with(name, value.replace('\0', ""));
        }
        let answer = call.stdin(text(&mut random, &base)).run()?;
        ensure_answered(answer.is_success, &answer.stdout)?;
        ensure!(answer.stderr.is_empty(), "seed {seed}: {}", answer.stderr);
    }
    ensure!(node.command("nft list ruleset")? == rules && node.leftovers("pods")?.is_empty());
    Ok(())
}

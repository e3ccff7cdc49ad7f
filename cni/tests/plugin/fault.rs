//! Killed, hurried, called twice: what is left is nothing, and what is there is right.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollgate_lab::TCP_PORT;

use crate::Case;
use crate::node::{Answer, Node, Pod, addresses, conf, conf_with, sockets};

pub(crate) const CASES: &[Case] = &[
    ("killed_at_a_hundred_moments_nothing_is_left_after_gc", killed_at_a_hundred_moments),
    ("a_killed_add_is_begun_anew", a_killed_add_is_begun_anew),
    ("a_second_add_is_refused_and_the_first_stays", a_second_add_is_refused),
    ("del_during_add_leaves_nothing", del_during_add_leaves_nothing),
    ("a_hundred_pods_at_once", a_hundred_pods_at_once),
    ("a_netns_that_is_gone_leaves_nothing", a_netns_that_is_gone_leaves_nothing),
    ("gc_keeps_what_is_valid", gc_keeps_what_is_valid),
    ("a_failed_add_in_another_network_harms_nothing", a_failed_add_in_another_network_harms_nothing),
    ("rules_that_somebody_flushed_come_back", rules_that_somebody_flushed_come_back),
    ("a_released_address_rests", a_released_address_rests),
];

const KILLS: u32 = 100;

/// All that there can be: host ports, masquerading, both families.
fn full() -> Value {
    conf_with(|conf| {
        conf["ipMasq"] = true.into();
        conf["runtimeConfig"] = json!({ "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "192.0.2.1" },
        ] });
    })
}

fn kill_after(mut child: Child, delay: Duration) -> Result<bool> {
    thread::sleep(delay);
    // It may have ended.
    let was_running = child.try_wait()?.is_none();
    child.kill()?;
    child.wait()?;
    Ok(was_running)
}

fn killed_at_a_hundred_moments() -> Result<()> {
    let node = Node::new("node")?;
    let conf = full();
    let measure = |verb: &str, pod: &Pod| -> Result<Duration> {
        let start = Instant::now();
        node.call(verb, &conf).of(pod).run()?.success()?;
        Ok(start.elapsed())
    };
    let pod = node.pod("measured")?;
    let (add, del) = (measure("ADD", &pod)?, measure("DEL", &pod)?);
    let mut killed = 0;
    for number in 0..KILLS {
        // The moments are spread over what a call takes, and a little beyond.
        let moment = |whole: Duration| whole * (number / 2) * 12 / (KILLS / 2) / 10;
        let pod = node.pod(&format!("pod-{number}"))?;
        let call = if number % 2 == 0 {
            node.call("ADD", &conf).of(&pod)
        } else {
            node.add(&pod, &conf)?;
            node.call("DEL", &conf).of(&pod)
        };
        let whole = if number % 2 == 0 { add } else { del };
        killed += u32::from(kill_after(call.start()?, moment(whole))?);
        // The host ports are wanted by the next one: half of the pods are cleaned up by DEL, half by GC.
        if number % 4 < 2 {
            node.gc(&conf, &[])?;
        } else {
            node.call("DEL", &conf).of(&pod).with("CNI_NETNS", "").run()?.success()?;
        }
        // A child that a killed DEL has left is at the kernel's work for some milliseconds.
        tollgate_lab::eventually("nothing to be left", || node.ensure_nothing_left("pods"))
            .with_context(|| format!("kill {number} at {:?} of {whole:?}", moment(whole)))?;
    }
    // Otherwise the moments were none.
    ensure!(killed >= KILLS / 3, "only {killed} of {KILLS} were killed while they ran");
    // And the node still works.
    let pod = node.pod("last")?;
    node.add(&pod, &conf)?;
    node.del(&pod, &conf)?;
    node.ensure_nothing_left("pods")
}

fn a_killed_add_is_begun_anew() -> Result<()> {
    let node = Node::new("node")?;
    let start = Instant::now();
    let pod = node.pod("measured")?;
    node.add(&pod, &full())?;
    let whole = start.elapsed();
    node.del(&pod, &full())?;
    for number in 0..20 {
        let pod = node.pod(&format!("pod-{number}"))?;
        kill_after(node.call("ADD", &full()).of(&pod).start()?, whole * number / 20)?;
        // The runtime does not know whether it came to its end: it may be refused, and then is after a DEL.
        let answer = node.call("ADD", &full()).of(&pod).run()?;
        let answer = if answer.is_success {
            answer
        } else {
            ensure!(answer.failure()?.0 == 100);
            node.del(&pod, &full())?;
            node.call("ADD", &full()).of(&pod).run()?
        };
        let result = answer.success()?;
        ensure!(addresses(&result).len() == 2, "{result}");
        node.del(&pod, &full())?;
        node.ensure_nothing_left("pods")?;
    }
    Ok(())
}

fn a_second_add_is_refused() -> Result<()> {
    let node = Node::new("node")?;
    let (pod, result, _servers) = node.attached("pod", &conf())?;
    let (code, text) = node.call("ADD", &conf()).of(&pod).run()?.failure()?;
    ensure!(code == 100 && text.contains("has an interface eth0 already"), "{code} {text}");
    for to in sockets(&result, TCP_PORT) {
        ensure!(tollgate_lab::Probe::from(&node.netns).tcp(to).answer()?.by == "pod");
    }
    // Both at the same time: one of them has it.
    let pod = node.pod("raced")?;
    let calls = [node.call("ADD", &conf()).of(&pod).start()?, node.call("ADD", &conf()).of(&pod).start()?];
    let answers: Vec<Answer> =
        calls.map(|child| child.wait_with_output().map(Answer::from)).into_iter().collect::<Result<_, _>>()?;
    ensure!(answers.iter().filter(|answer| answer.is_success).count() == 1, "{answers:?}");
    // Another interface of the same container is another attachment.
    let second = node.call("ADD", &conf()).of(&pod).with("CNI_IFNAME", "net1").run()?.success()?;
    ensure!(second["interfaces"][2]["name"] == "net1");
    Ok(())
}

fn del_during_add_leaves_nothing() -> Result<()> {
    let node = Node::new("node")?;
    for number in 0..20u32 {
        let pod = node.pod(&format!("pod-{number}"))?;
        let add = node.call("ADD", &full()).of(&pod).start()?;
        thread::sleep(Duration::from_micros(200 * u64::from(number)));
        let del: Answer = node.call("DEL", &full()).of(&pod).run()?;
        del.success()?;
        let add: Answer = add.wait_with_output()?.into();
        add.success()?;
        // Whichever was first; the runtime's own DEL comes after a failed pod in any case.
        node.del(&pod, &full())?;
        node.ensure_nothing_left("pods")?;
    }
    Ok(())
}

fn a_hundred_pods_at_once() -> Result<()> {
    let node = Node::new("node")?;
    let pods: Vec<Pod> = (0..100).map(|number| node.pod(&format!("pod-{number}"))).collect::<Result<_>>()?;
    let at_once = |verb: &str| -> Result<Vec<Value>> {
        let calls: Vec<Child> =
            pods.iter().map(|pod| node.call(verb, &conf()).of(pod).start()).collect::<Result<_>>()?;
        calls.into_iter().map(|child| Answer::from(child.wait_with_output()?).success()).collect()
    };
    let results = at_once("ADD")?;
    let given: BTreeSet<IpAddr> = results.iter().flat_map(addresses).collect();
    ensure!(given.len() == 200, "{} addresses for 100 pods", given.len());
    let _servers = tollgate_lab::Servers::start(&pods[0].netns)?;
    for pod in [&pods[1], &pods[99]] {
        for to in sockets(&results[0], TCP_PORT) {
            ensure!(pod.probe().tcp(to).answer()?.by == "pod-0");
        }
    }
    at_once("DEL")?;
    node.ensure_nothing_left("pods")
}

fn a_netns_that_is_gone_leaves_nothing() -> Result<()> {
    let node = Node::new("node")?;
    let pod = node.pod("pod")?;
    node.add(&pod, &full())?;
    let id = pod.id.clone();
    drop(pod);
    node.call("DEL", &full()).with("CNI_CONTAINERID", id).with("CNI_IFNAME", "eth0").run()?.success()?;
    node.ensure_nothing_left("pods")
}

fn gc_keeps_what_is_valid() -> Result<()> {
    let node = Node::new("node")?;
    let (kept, result, _servers) = node.attached("kept", &full())?;
    let gone = node.pod("gone")?;
    node.add(&gone, &conf())?;
    // Another network's pods are none of its business.
    let others = conf_with(|conf| {
        conf["name"] = "others".into();
        conf["bridge"] = "others".into();
        conf["ipam"] = json!({ "subnet": "10.7.0.0/24" });
    });
    let (other, other_result, _other_servers) = node.attached("other", &others)?;
    node.gc(&full(), &[&kept])?;
    let mut again = full();
    again["prevResult"] = result;
    node.call("CHECK", &again).of(&kept).run()?.success()?;
    let mut again = others.clone();
    again["prevResult"] = other_result;
    node.call("CHECK", &again).of(&other).run()?.success()?;
    node.del(&kept, &full())?;
    node.ensure_nothing_left("pods").map_or_else(
        |error| {
            // The link of the other network is the only one.
            let text = format!("{error:#}");
            ensure!(!text.contains("gone") && !text.contains("10.1."), "{text}");
            Ok(())
        },
        Ok,
    )?;
    node.gc(&others, &[])?;
    node.ensure_nothing_left("others")
}

fn a_failed_add_in_another_network_harms_nothing() -> Result<()> {
    let node = Node::new("node")?;
    let (pod, result, _servers) = node.attached("pod", &conf())?;
    let others = conf_with(|conf| {
        conf["name"] = "others".into();
        conf["ipam"] = json!({ "subnet": "10.7.0.0/24" });
    });
    let (code, text) = node.call("ADD", &others).of(&pod).run()?.failure()?;
    ensure!(code == 100 && text.contains("some other plugin"), "{code} {text}");
    node.del(&pod, &others)?;
    let mut again = conf();
    again["prevResult"] = result;
    node.call("CHECK", &again).of(&pod).run()?.success()?;
    Ok(())
}

fn rules_that_somebody_flushed_come_back() -> Result<()> {
    let node = Node::new("node")?;
    let (first, second) = (node.pod("first")?, node.pod("second")?);
    node.add(&first, &full())?;
    node.command("nft flush ruleset")?;
    node.add(&second, &full())?;
    let rules = node.command("nft list ruleset")?;
    ensure!(rules.contains("second") && rules.contains("dport 67 return"), "{rules}");
    // DEL of the one whose elements are gone.
    node.del(&first, &full())?;
    node.del(&second, &full())?;
    node.ensure_nothing_left("pods")
}

fn a_released_address_rests() -> Result<()> {
    let node = Node::new("node")?;
    let (first, second) = (node.pod("first")?, node.pod("second")?);
    let before = addresses(&node.add(&first, &conf())?);
    node.del(&first, &conf())?;
    let after = addresses(&node.add(&second, &conf())?);
    ensure!(before[0] != after[0] && before[1] != after[1], "{before:?} {after:?}");
    Ok(())
}

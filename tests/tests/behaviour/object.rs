//! Which objects count.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollgate_lab::object::{Endpoint, Service};
use tollgate_lab::{Family, Outcome, Protocol, TCP_PORT};

use crate::Case;
use crate::scene::{At, Client, Scene, Stage};
use crate::table::{Expect, Table, ensure_refused};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("headless-ignored", Case::Own(headless_ignored)),
    ("foreign-proxy-ignored", Case::Steps(foreign_proxy_ignored)),
    ("slice-owner-label", Case::Table(slice_owner_label)),
    ("family-split", Case::Steps(family_split)),
    ("bad-object-isolated", Case::Steps(bad_object_isolated)),
];

fn headless_ignored(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    scene.apply([scene.service("other").port(Protocol::Tcp, 80).into(), scene.ready("other", &["pod-2b"]).into()])?;
    let (web, other) = (scene.vip("web", 80)?, scene.vip("other", 80)?);
    let client = scene.probe(Client::Pod("pod-1a"));
    ensure!(client.tcp(web).by()? == "pod-2a", "it has a ClusterIP at first");
    scene.delete_service("web")?;
    scene.apply([scene.web().cluster_ip("None").into()])?;
    let reply = client.clone().impatient().tcp(web);
    ensure!(reply.outcome == Outcome::Timeout, "a headless Service still has a frontend: {reply}");
    // It is nothing to complain of, either.
    let log = stage.lab.proxy(1).log().lines();
    let complaint = log.iter().find(|line| line.contains("WARN") && line.contains("default/web"));
    ensure!(complaint.is_none(), "{complaint:?}");
    let scene = stage.scene()?;
    // The same of a Service that is only a name.
    scene.apply([scene.service("elsewhere").external_name("example.net").into()])?;
    ensure!(client.tcp(other).by()? == "pod-2b", "the control answers");
    client.tcp(scene.pod("pod-2a").socket(scene.family, TCP_PORT)).answer()?;
    Ok(())
}

fn foreign_proxy_ignored(scene: &Scene<'_>) -> Result<()> {
    let named = |name: &str| scene.service(name).port(Protocol::Tcp, 80);
    scene.apply([
        named("theirs").label("service.kubernetes.io/service-proxy-name", "another").into(),
        scene.ready("theirs", &["pod-2a"]).into(),
        named("ours").into(),
        scene.ready("ours", &["pod-2a"]).into(),
        scene.ready("ours", &["pod-2b"]).named("headless").label("service.kubernetes.io/headless", "").into(),
    ])?;
    let client = scene.probe(Client::Pod("pod-1a"));
    let reply = client.clone().impatient().tcp(scene.vip("theirs", 80)?);
    ensure!(!matches!(reply.outcome, Outcome::Answered(_)), "another proxy's Service: {reply}");
    client.spread(Protocol::Tcp, scene.vip("ours", 80)?, 64).ensure_only(&["pod-2a"])?;
    // Handed over to another proxy, and back.
    let vip = scene.vip("ours", 80)?;
    scene.apply([named("ours").label("service.kubernetes.io/service-proxy-name", "another").into()])?;
    let reply = client.clone().impatient().tcp(vip);
    ensure!(reply.answer().is_err(), "it is another proxy's by now: {reply}");
    scene.apply([named("ours").into()])?;
    client.spread(Protocol::Tcp, vip, 64).ensure_only(&["pod-2a"])
}

fn slice_owner_label(scene: &Scene<'_>) -> Table {
    let terminating = Endpoint::terminating(scene.pod("pod-2a"));
    // Published as ready although it terminates; elsewhere it is neither.
    let published = Endpoint::with(scene.pod("pod-2b"), true, true, true);
    let not_ready = Endpoint::not_ready(scene.pod("pod-2b"));
    Table::new()
        // Two slices, with a pod that is in both and counts once, and two of which they say different things: what is said
        // of a pod that does not terminate is the newer. They are there before the Service, so that it is resolved once.
        .given(scene.ready("web", &["pod-1a", "pod-2a"]).named("first").endpoint(published))
        .given(scene.ready("web", &["pod-1a", "pod-1b"]).named("second").endpoints([terminating, not_ready]))
        // Named like the Service, but owned by another.
        .given(scene.ready("other", &["pod-2b"]).named("web"))
        .given(scene.web())
        .given(scene.service("other").transports(80))
        .rows(Client::Pod("pod-2b"), ("web", 80), Expect::Even(&["pod-1a", "pod-1b", "pod-2a"]))
        .rows(Client::Pod("pod-1a"), ("other", 80), Expect::Only(&["pod-2b"]))
}

fn family_split(scene: &Scene<'_>) -> Result<()> {
    // Of both families, whose slices name different pods.
    let mut slices = Family::ALL.map(|family| (family, scene.slice_of("web", family)));
    for (family, slice) in &mut slices {
        *slice = slice.clone().endpoint(scene.pod(if *family == Family::V4 { "pod-1b" } else { "pod-2b" }));
    }
    let service = Service::new(scene.namespace(), "web").transports(80);
    scene.apply([Value::from(service)].into_iter().chain(slices.map(|(_, slice)| slice.into())))?;
    let expected = if scene.family == Family::V4 { "pod-1b" } else { "pod-2b" };
    for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 81)] {
        let spread = scene.probe(Client::Pod("pod-1a")).spread(protocol, scene.vip("web", port)?, 64);
        spread.ensure_only(&[expected])?;
    }
    // The NodePort of a Service that has one family is the host's own port in the other.
    let single = scene.service("single").transports(80).node_port();
    scene.apply([single.into(), scene.ready("single", &["pod-1b"]).into()])?;
    let to = scene.address(At::node(1).of("single", 80))?;
    let other = Family::ALL.into_iter().find(|family| *family != scene.family).expect("there are two");
    let client = scene.probe(Client::Outside);
    ensure!(client.tcp(to).by()? == "pod-1b", "in its own family it answers");
    ensure_refused(&client.tcp((scene.cluster().node(1).ip(other), to.port()).into())).context("in the other family")
}

fn bad_object_isolated(scene: &Scene<'_>) -> Result<()> {
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    // Whether the control plane refuses them or the proxy skips them: the rest goes on.
    for (name, address) in [("not-an-address", "pod-2a"), ("loopback", "127.0.0.1"), ("link-local", "169.254.169.254")]
    {
        let mut slice = Value::from(scene.ready(name, &["pod-2a"]));
        slice["endpoints"][0]["addresses"] = json!([address]);
        let mut service = Value::from(scene.service(name).port(Protocol::Tcp, 80));
        service["spec"]["sessionAffinity"] = json!("Sometimes");
        // Refused or taken: both are fine, as long as everybody else is served.
        let _ = (scene.lab.apply(service), scene.lab.apply(slice));
    }
    let mut slice = Value::from(scene.ready("web", &["pod-2b"]).named("bad"));
    slice["endpoints"][0]["addresses"] = json!(["nowhere"]);
    let _ = scene.lab.apply(slice);
    scene.apply([scene.ready("web", &["pod-1b"]).into()])?;
    let client = scene.probe(Client::Pod("pod-1a"));
    client.spread(Protocol::Tcp, scene.vip("web", 80)?, 64).ensure_only(&["pod-1b"])
}

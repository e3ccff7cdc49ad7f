//! Connections: a connect, a request and a close, through Services and directly, in turns.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::Rng;
use serde::Serialize;
use tollgate_lab::NetNs;

use super::report::Percentiles;
use super::scale::Scale;
use super::server::ask;

/// Connections to one target before it is the next one's turn: enough that each has warm caches, few enough that all
/// targets see the same noise.
const TURN: u32 = 20;

/// What a connection costs, by target, in the order of the targets.
#[derive(Debug, Serialize)]
pub(super) struct Connections {
    pub(super) by_target: BTreeMap<&'static str, Percentiles>,
}

/// Where the client dials.
#[derive(Clone)]
enum Target {
    One(SocketAddr),
    /// One of these, at random.
    Any(std::sync::Arc<[SocketAddr]>),
}

pub(super) fn measure(scale: &Scale, connections: u32) -> Result<Connections> {
    let vips = scale.vips();
    let (first, last) = (vips[0], vips[vips.len() - 1]);
    let (here, bare) = (scale.client(), scale.bare_client());
    let targets: [(&'static str, &NetNs, Target); 5] = [
        ("no rules", bare, Target::One(scale.bare_server())),
        ("direct", here, Target::One(scale.server())),
        ("first Service", here, Target::One(first)),
        ("last Service", here, Target::One(last)),
        ("random Service", here, Target::Any(vips.into())),
    ];
    let mut times: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
    for turn in 0..=connections.div_ceil(TURN) {
        for (name, client, target) in &targets {
            let target = target.clone();
            let taken = client.run(move || dial(&target)).with_context(|| format!("the target `{name}`"))?;
            // The first turn warms up.
            if turn > 0 {
                times.entry(name).or_default().extend(taken);
            }
        }
    }
    Ok(Connections { by_target: times.into_iter().map(|(name, times)| (name, Percentiles::of(times))).collect() })
}

fn dial(target: &Target) -> Result<Vec<Duration>> {
    let mut random = rand::rng();
    (0..TURN)
        .map(|_| {
            let to = match target {
                Target::One(to) => *to,
                Target::Any(all) => all[random.random_range(0..all.len())],
            };
            let start = Instant::now();
            ask(to).with_context(|| format!("dialling {to}"))?;
            Ok(start.elapsed())
        })
        .collect()
}

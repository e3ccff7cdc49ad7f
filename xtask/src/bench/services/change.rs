//! Changes: how long from the control plane until a new connection meets the change.
//!
//! A client dials all the time, so what is told is what a packet sees. A change begins when its request is sent; the
//! control plane acknowledges it once it is on disk, and from then on the rest is the proxy's and the kernel's.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tollgate_lab::NetNs;

use super::report::Percentiles;
use super::scale::{Scale, slice, vip_of};
use super::server::{PORTS, ask_within};

/// Between two changes: the proxy has nothing to do.
const QUIET: Duration = Duration::from_millis(50);
/// Nobody waits longer for a change.
const PATIENCE: Duration = Duration::from_secs(60);
/// A connect whose first packet came too early waits for no retransmission.
const ATTEMPT: Duration = Duration::from_millis(20);
const BURST: u32 = 50;
const BURSTS: u32 = 6;
/// Services that come with their slice, one by one.
const NEW: u32 = 20;

/// From a change until a new connection meets it.
#[derive(Debug, Serialize)]
pub(super) struct Changes {
    /// One endpoint exchanged for another: from the request.
    pub(super) update_from_request: Percentiles,
    /// The same from the acknowledgement; zero where the kernel was quicker than that.
    pub(super) update_from_acknowledgement: Percentiles,
    /// A new Service and its slice: from the request of the first to an answer.
    pub(super) new_service: Percentiles,
    /// 50 changes at once, until the last is met.
    pub(super) burst: Percentiles,
}

pub(super) fn measure(scale: &Scale, changes: u32) -> Result<Changes> {
    let mut from_request = Vec::new();
    let mut from_acknowledgement = Vec::new();
    let target = scale.vips()[0];
    for number in 1..=changes {
        std::thread::sleep(QUIET);
        let port = usize::try_from(number % 2)?;
        let sentinel = Sentinel::start(scale.client(), target, port);
        let sent = Instant::now();
        scale.apply(slice(0, PORTS[port]))?;
        let acknowledged = Instant::now();
        let met = sentinel.met()?;
        from_request.push(met.duration_since(sent));
        from_acknowledgement.push(met.saturating_duration_since(acknowledged));
    }
    Ok(Changes {
        update_from_request: Percentiles::of(from_request),
        update_from_acknowledgement: Percentiles::of(from_acknowledgement),
        new_service: Percentiles::of(new_services(scale)?),
        burst: Percentiles::of(bursts(scale)?),
    })
}

fn new_services(scale: &Scale) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for number in 0..NEW {
        std::thread::sleep(QUIET);
        let index = scale.services() + number;
        let sent = Instant::now();
        let vip = vip_of(&scale.apply(super::scale::service(index))?)?;
        scale.apply(slice(index, PORTS[0]))?;
        times.push(Sentinel::start(scale.client(), vip, 0).met()?.duration_since(sent));
    }
    Ok(times)
}

fn bursts(scale: &Scale) -> Result<Vec<Duration>> {
    let count = BURST.min(scale.services());
    let mut times = Vec::new();
    for number in 0..BURSTS {
        std::thread::sleep(QUIET);
        // Service 0 is where the changes before have left it.
        let port = usize::try_from((number + 1) % 2)?;
        let vips = scale.vips()[..usize::try_from(count)?].to_vec();
        let sent = Instant::now();
        scale.apply_all((0..count).map(|index| slice(index, PORTS[port])).collect())?;
        for vip in vips {
            Sentinel::start(scale.client(), vip, port).met()?;
        }
        times.push(sent.elapsed());
    }
    Ok(times)
}

/// Dials until the server of a certain port answers.
struct Sentinel {
    met: mpsc::Receiver<Result<Instant>>,
    is_over: Arc<AtomicBool>,
}

impl Sentinel {
    fn start(client: &NetNs, to: SocketAddr, wanted: usize) -> Self {
        let (sender, met) = mpsc::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let (client, over) = (client.clone(), is_over.clone());
        std::thread::spawn(move || {
            let result = client.run(move || dial_until(to, wanted, &over));
            // Whoever asked may have given up.
            let _ = sender.send(result);
        });
        Self { met, is_over }
    }

    fn met(self) -> Result<Instant> {
        let met = self.met.recv_timeout(PATIENCE);
        self.is_over.store(true, Ordering::Relaxed);
        met.context("a change was not met in time")?
    }
}

fn dial_until(to: SocketAddr, wanted: usize, over: &AtomicBool) -> Result<Instant> {
    let mut last = None;
    while !over.load(Ordering::Relaxed) {
        // A new Service may not be there yet, and is refused or unreachable until it is.
        match ask_within(to, ATTEMPT) {
            Ok(port) if port == wanted => return Ok(Instant::now()),
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.context(format!("dialling {to}"))),
        None => bail!("{to} went on answering as before"),
    }
}

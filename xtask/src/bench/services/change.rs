//! Changes: how long from the control plane until a new connection meets the change.
//!
//! A client dials all the time, so what is told is what a packet sees. A change begins when its request is sent; the
//! control plane acknowledges it once it is on disk, and from then on the rest is the proxy's and the kernel's.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tollgate_lab::NetNs;

use super::report::Percentiles;
use super::scale::{Scale, revision_of, slice, vip_of};
use super::server::{PORTS, ask, ask_within};

/// Between two changes: the proxy has nothing to do.
const QUIET: Duration = Duration::from_millis(50);
/// Nobody waits longer for a change.
const PATIENCE: Duration = Duration::from_secs(60);
/// A connect whose first packet came too early waits for no retransmission.
const ATTEMPT: Duration = Duration::from_millis(20);
const BURST: u32 = 50;
const BURSTS: u32 = 20;
/// Services that come with their slice, one by one.
const NEW: u32 = 20;

/// From a change until a new connection meets it.
#[derive(Debug, Serialize)]
pub(super) struct Changes {
    /// One endpoint exchanged for another: from the request.
    pub(super) update_from_request: Percentiles,
    /// The same from the acknowledgement; zero where the kernel was quicker than that.
    pub(super) update_from_acknowledgement: Percentiles,
    /// A new Service and its slice, one written after the other: from the request of the first to an answer.
    pub(super) new_service_from_request: Percentiles,
    /// The same from the acknowledgement of the second.
    pub(super) new_service_from_acknowledgement: Percentiles,
    /// 50 changes of as many Services, written as an `apply` of many objects writes them: up to 64 at one time. From the first
    /// request until the last of them is met.
    pub(super) burst_from_request: Percentiles,
    /// The same from the last acknowledgement.
    pub(super) burst_from_acknowledgement: Percentiles,
}

/// When something was written and when it was met.
#[derive(Default)]
struct Times {
    from_request: Vec<Duration>,
    from_acknowledgement: Vec<Duration>,
}

impl Times {
    fn add(&mut self, sent: Instant, acknowledged: Instant, met: Instant) {
        self.from_request.push(met.duration_since(sent));
        self.from_acknowledgement.push(met.saturating_duration_since(acknowledged));
    }
}

pub(super) fn measure(scale: &Scale, changes: u32) -> Result<Changes> {
    let mut updates = Times::default();
    let target = scale.vips()[0];
    for number in 1..=changes {
        std::thread::sleep(QUIET);
        let port = usize::try_from(number % 2)?;
        let sentinel = Sentinel::start(scale.client(), target, port);
        let sent = Instant::now();
        scale.apply(slice(0, PORTS[port]))?;
        let acknowledged = Instant::now();
        updates.add(sent, acknowledged, sentinel.met()?);
    }
    let (new_services, bursts) = (new_services(scale)?, bursts(scale)?);
    Ok(Changes {
        update_from_request: Percentiles::of(updates.from_request),
        update_from_acknowledgement: Percentiles::of(updates.from_acknowledgement),
        new_service_from_request: Percentiles::of(new_services.from_request),
        new_service_from_acknowledgement: Percentiles::of(new_services.from_acknowledgement),
        burst_from_request: Percentiles::of(bursts.from_request),
        burst_from_acknowledgement: Percentiles::of(bursts.from_acknowledgement),
    })
}

fn new_services(scale: &Scale) -> Result<Times> {
    let mut times = Times::default();
    for number in 0..NEW {
        std::thread::sleep(QUIET);
        let index = scale.services() + number;
        let sent = Instant::now();
        let vip = vip_of(&scale.apply(super::scale::service(index))?)?;
        scale.apply(slice(index, PORTS[0]))?;
        let acknowledged = Instant::now();
        times.add(sent, acknowledged, Sentinel::start(scale.client(), vip, 0).met()?);
    }
    Ok(times)
}

/// The proxy applies changes in the order of their revisions: when the one with the newest is met, all are there, which is
/// looked at then. To dial all fifty until each is met would mostly measure the dialling.
fn bursts(scale: &Scale) -> Result<Times> {
    let count = BURST.min(scale.services());
    let mut times = Times::default();
    for number in 0..BURSTS {
        std::thread::sleep(QUIET);
        // Service 0 is where the changes before have left it.
        let port = usize::try_from((number + 1) % 2)?;
        let vips = scale.vips()[..usize::try_from(count)?].to_vec();
        let sent = Instant::now();
        let stored = scale.apply_all((0..count).map(|index| slice(index, PORTS[port])).collect())?;
        let acknowledged = Instant::now();
        let revisions = stored.iter().map(revision_of).collect::<Result<Vec<_>>>()?;
        let newest = vips.iter().zip(revisions).max_by_key(|(_, revision)| *revision).context("a burst of nothing")?;
        times.add(sent, acknowledged, Sentinel::start(scale.client(), *newest.0, port).met()?);
        let answers = scale.client().run(move || vips.into_iter().map(ask).collect::<Result<Vec<_>>>())?;
        ensure!(
            answers.iter().all(|answer| *answer == port),
            "not all of a burst was there with its last: {answers:?}"
        );
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
            Ok(port) if port == wanted => {
                let met = Instant::now();
                // Connection tracking remembers for 10 s what was reset: a connection from a port that was used before may go the
                // way of then, and one in some ten thousand does. Not two in a row.
                if ask_within(to, ATTEMPT).is_ok_and(|again| again == wanted) {
                    return Ok(met);
                }
            }
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.context(format!("dialling {to}"))),
        None => bail!("{to} went on answering as before"),
    }
}

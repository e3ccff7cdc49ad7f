//! Many watchers, each on a connection of its own as a proxy has it, and how soon they have a change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tokio::sync::Barrier;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{ApplyRequest, Kind, ResumeToken, StatusRequest, WatchRequest};

use super::Percentiles;
use super::load::slice;
use super::server::{Client, Server};

/// How soon watchers know.
#[derive(Debug, Serialize)]
pub(super) struct Watchers {
    watchers: u32,
    changes: u32,
    /// Deliveries in a second, all watchers together.
    deliveries_per_second: f64,
    /// From the moment that the write was sent until a watcher had it: the disk included.
    from_request: Percentiles,
    /// From its acknowledgement; 0 where the watcher was sooner than the writer.
    from_acknowledgement: Percentiles,
    memory_before_bytes: u64,
    memory_bytes: u64,
}

impl Watchers {
    pub(super) fn print(&self) {
        println!(
            "{} watchers, {} changes to each: {:.0} deliveries/s, memory {} MiB, {} MiB before",
            self.watchers,
            self.changes,
            self.deliveries_per_second,
            self.memory_bytes >> 20,
            self.memory_before_bytes >> 20
        );
        println!("    lag from the request          {}", self.from_request);
        println!("    lag from the acknowledgement  {}", self.from_acknowledgement);
    }
}

/// When each change was sent and acknowledged, in microseconds since the beginning, by its place in the stream.
struct Times {
    begun: Instant,
    sent: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
}

pub(super) async fn measure(server: &Server, watchers: u32, changes: u32, rate: u32) -> Result<Watchers> {
    let memory_before_bytes = server.memory()?;
    let mut writer = server.client().await?;
    let at = writer.status(StatusRequest::default()).await?.into_inner().at.context("no position")?;
    let all_are_there = Arc::new(Barrier::new(usize::try_from(watchers)? + 1));
    let mut running = Vec::new();
    for n in 0..watchers {
        let (client, at) = (server.client().await?, at.clone());
        running.push(tokio::spawn(watch(client, n, at, changes, all_are_there.clone())));
    }
    all_are_there.wait().await;
    let zeros = || (0..changes).map(|_| AtomicU64::new(0)).collect();
    let times = Times { begun: Instant::now(), sent: zeros(), acknowledged: zeros() };
    write(&mut writer, &times, changes, rate).await?;
    // While all of it is still there.
    let mut arrivals = Vec::new();
    for watcher in running {
        arrivals.push(watcher.await??);
    }
    let took = times.begun.elapsed();
    let memory_bytes = server.memory()?;
    let (mut from_request, mut from_acknowledgement) = (Vec::new(), Vec::new());
    for arrived in arrivals {
        for (at, (sent, acknowledged)) in arrived.iter().zip(times.sent.iter().zip(&times.acknowledged)) {
            let at = micros(at.saturating_duration_since(times.begun));
            let since = |then: &AtomicU64| Duration::from_micros(at.saturating_sub(then.load(Ordering::Relaxed)));
            from_request.push(since(sent).as_secs_f32() * 1e3);
            from_acknowledgement.push(since(acknowledged).as_secs_f32() * 1e3);
        }
    }
    Ok(Watchers {
        watchers,
        changes,
        deliveries_per_second: f64::from(watchers) * f64::from(changes) / took.as_secs_f64(),
        from_request: Percentiles::of(from_request),
        from_acknowledgement: Percentiles::of(from_acknowledgement),
        memory_before_bytes,
        memory_bytes,
    })
}

async fn write(writer: &mut Client, times: &Times, changes: u32, rate: u32) -> Result<()> {
    let mut due = tokio::time::interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for (n, (sent, acknowledged)) in (0..changes).zip(times.sent.iter().zip(&times.acknowledged)) {
        due.tick().await;
        sent.store(micros(times.begun.elapsed()), Ordering::Relaxed);
        writer.apply(ApplyRequest { json: slice(n % 100, n / 100 + 1).into_bytes() }).await?;
        acknowledged.store(micros(times.begun.elapsed()), Ordering::Relaxed);
    }
    Ok(())
}

/// Returns when each change was there. None may be missing.
async fn watch(
    mut client: Client,
    n: u32,
    at: ResumeToken,
    changes: u32,
    all_are_there: Arc<Barrier>,
) -> Result<Vec<Instant>> {
    let first = at.revision + 1;
    let kinds = vec![Kind::Service.into(), Kind::EndpointSlice.into()];
    let request = WatchRequest { kinds, resume: Some(at), client: format!("bench-{n}") };
    let mut events = client.watch(request).await?.into_inner();
    let mut arrived = Vec::with_capacity(usize::try_from(changes)?);
    // The end of what there was before.
    let progress = events.message().await?.context("the watch ended")?;
    ensure!(matches!(progress.event, Some(Event::Progress(_))), "the watch does not resume: {progress:?}");
    all_are_there.wait().await;
    while arrived.len() < usize::try_from(changes)? {
        match events.message().await?.context("the watch ended")?.event {
            Some(Event::Apply(object)) => {
                ensure!(object.revision == first + arrived.len() as u64, "revision {} is out of turn", object.revision);
                arrived.push(Instant::now());
            }
            Some(Event::Progress(_)) => {}
            other => bail!("an event that was not to come: {other:?}"),
        }
    }
    Ok(arrived)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

//! Durable writes: each client waits for its own before it sends the next.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tollgate_api::v1::ApplyRequest;

use super::Percentiles;
use super::server::Server;

/// How fast writes are.
#[derive(Debug, Serialize)]
pub(super) struct Writes {
    clients: usize,
    per_second: f64,
    count: usize,
    times: Percentiles,
}

impl Writes {
    pub(super) fn print(&self) {
        let Writes { clients, per_second, count, times } = self;
        println!("{clients:3} clients: {per_second:6.0} durable writes/s   {times}   ({count} writes)");
    }
}

pub(super) async fn measure(server: &Server, clients: usize, seconds: u64) -> Result<Writes> {
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let mut writers = Vec::new();
    for writer in 0..clients {
        let mut client = server.client().await?;
        writers.push(tokio::spawn(async move {
            let mut times = Vec::new();
            for n in 0_u64.. {
                let sent = Instant::now();
                if sent > end {
                    break;
                }
                client.apply(ApplyRequest { json: service(writer, n).into_bytes() }).await?;
                times.push(sent.elapsed().as_secs_f32() * 1e3);
            }
            Ok::<_, tonic::Status>(times)
        }));
    }
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await??);
    }
    let count = times.len();
    let per_second = f64::from(u32::try_from(count)?) / begun.elapsed().as_secs_f64();
    Ok(Writes { clients, per_second, count, times: Percentiles::of(times) })
}

/// One of the writer's 100 Services, not as it was before.
fn service(writer: usize, n: u64) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"w{writer}-{}","annotations":{{"n":"{n}"}}}},
            "spec":{{"selector":{{"app":"x"}},"ports":[{{"port":80}}]}}}}"#,
        n % 100
    )
}

//! A large cluster: how long it takes to load, what it takes, and how long a restart is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde::Serialize;
use tollgate_api::v1::{ApplyRequest, Kind, ListRequest};

use super::server::Server;

const CLIENTS: usize = 16;
pub(super) const ENDPOINTS: u32 = 10;

/// What a large cluster costs.
#[derive(Debug, Serialize)]
pub(super) struct Load {
    services: u32,
    endpoints_each: u32,
    load: Duration,
    memory_bytes: u64,
    file_bytes: u64,
    /// From the start of the process until it listens, with every page of the file verified.
    restart: Duration,
    memory_after_restart_bytes: u64,
    file_after_restart_bytes: u64,
    restart_after_kill: Duration,
    list: Duration,
}

impl Load {
    pub(super) fn print(&self) {
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{} Services x {} endpoints: loaded in {:.1} s, memory {} MiB, file {} MiB",
            self.services,
            self.endpoints_each,
            self.load.as_secs_f64(),
            mib(self.memory_bytes),
            mib(self.file_bytes)
        );
        println!(
            "    restart {:.2} s, after kill -9 {:.2} s; then memory {} MiB, file {} MiB; a list of all slices {:.2} s",
            self.restart.as_secs_f64(),
            self.restart_after_kill.as_secs_f64(),
            mib(self.memory_after_restart_bytes),
            mib(self.file_after_restart_bytes),
            self.list.as_secs_f64()
        );
    }
}

pub(super) async fn measure(server: Server, services: u32) -> Result<(Server, Load)> {
    let begun = Instant::now();
    let next = Arc::new(AtomicU32::new(0));
    let mut writers = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = server.client().await?;
        let next = next.clone();
        writers.push(tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= services {
                    return Ok::<_, tonic::Status>(());
                }
                client.apply(ApplyRequest { json: service(n).into_bytes() }).await?;
                client.apply(ApplyRequest { json: slice(n, 0).into_bytes() }).await?;
            }
        }));
    }
    for writer in writers {
        writer.await??;
    }
    let load = begun.elapsed();
    let (memory_bytes, file_bytes) = (server.memory()?, server.file()?);
    let server = server.restart(Signal::SIGKILL)?;
    let restart_after_kill = server.start;
    let server = server.restart(Signal::SIGTERM)?;
    let restart = server.start;
    let (memory_after_restart_bytes, file_after_restart_bytes) = (server.memory()?, server.file()?);
    let mut client = server.client().await?;
    let begun = Instant::now();
    let request = ListRequest { kind: Kind::EndpointSlice.into(), namespace: String::new() };
    let listed = client.list(request).await?.into_inner().objects.len();
    anyhow::ensure!(listed == usize::try_from(services)?, "{listed} slices are there");
    let list = begun.elapsed();
    let load = Load {
        services,
        endpoints_each: ENDPOINTS,
        load,
        memory_bytes,
        file_bytes,
        restart,
        memory_after_restart_bytes,
        file_after_restart_bytes,
        restart_after_kill,
        list,
    };
    Ok((server, load))
}

fn service(n: u32) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s{n}","labels":{{"app":"s{n}"}}}},
            "spec":{{"ports":[{{"name":"http","port":80,"targetPort":8080}}]}}}}"#
    )
}

/// The Service's one slice; `generation` makes it another one.
pub(super) fn slice(n: u32, generation: u32) -> String {
    let endpoints: Vec<String> = (0..ENDPOINTS)
        .map(|endpoint| {
            let [_, high, middle, low] = (n * ENDPOINTS + endpoint).to_be_bytes();
            format!(
                r#"{{"addresses":["10.{high}.{middle}.{low}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node-{}","zone":"zone-{}"}}"#,
                (n + endpoint + generation) % 500,
                endpoint % 3
            )
        })
        .collect();
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"s{n}-x","labels":{{"kubernetes.io/service-name":"s{n}"}},"annotations":{{"generation":"{generation}"}}}},"addressType":"IPv4","ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],"endpoints":[{}]}}"#,
        endpoints.join(",")
    )
}

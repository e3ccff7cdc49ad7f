//! What the programs count: connections of each endpoint, and refusals of each Service port.
//!
//! Read from the pins, so that neither `/metrics` nor `tollgate-proxy top` needs anything of the backend's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tollgate_ebpf_abi::{AddressPort, CounterKey, counter, map};
use tollgate_model::name::{IpFamily, Protocol};

use super::kernel::{Error, Maps};
use super::place::Pins;

/// What is counted of one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// `namespace/name:port`.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: IpFamily,
    /// Connections, and flows of UDP sockets that are not connected, by the endpoint that they were given.
    pub connections: BTreeMap<SocketAddr, u64>,
    /// Refused, because there was no endpoint.
    pub no_endpoints: u64,
    /// Refused at its ClusterIP, because no Service has the port.
    pub unknown_port: u64,
}

/// Everything that is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of each Service port, in the order of names.
    pub service_ports: Vec<Counter>,
    /// Dialled while an entry was exchanged again and again; left to packets.
    pub inconsistent: u64,
}

impl Counters {
    /// Reads those of the maps that are pinned below that directory; `None` where there are none.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn read(bpf_root: &Path) -> Result<Option<Self>, Error> {
        let Some(maps) = Maps::open(&Pins::new(bpf_root).maps())? else { return Ok(None) };
        let objects = maps.list()?;
        let counted: BTreeMap<CounterKey, u64> = sums(&maps)?.into_iter().collect();
        let of = |service_id, endpoint_id, counter| {
            counted.get(&CounterKey { service_id, endpoint_id, counter }).copied().unwrap_or(0)
        };
        let mut endpoints: BTreeMap<u32, BTreeMap<u32, SocketAddr>> = BTreeMap::new();
        let used =
            objects.services.values().map(|value| value.first_slot..value.first_slot.saturating_add(value.slots));
        for slot in used.flat_map(|run| objects.slots.range(run).map(|(_, slot)| slot)) {
            let address = AddressPort::new(slot.address, slot.port).into();
            endpoints.entry(slot.service_id).or_default().insert(slot.endpoint_id, address);
        }
        for (key, value) in &objects.members {
            endpoints.entry(key.service_id).or_default().insert(value.endpoint_id, key.endpoint.into());
        }
        let ids: BTreeSet<u32> = objects.services.values().map(|value| value.service_id).collect();
        let named = objects.names.iter().filter(|(id, _)| ids.contains(id));
        let mut service_ports: Vec<_> = named
            .filter_map(|(id, name)| {
                let endpoints = endpoints.remove(id).unwrap_or_default();
                Some(Counter {
                    name: name.label(),
                    protocol: name.protocol()?,
                    family: name.family()?,
                    connections: endpoints
                        .into_iter()
                        .map(|(endpoint, address)| (address, of(*id, endpoint, counter::CONNECTIONS)))
                        .collect(),
                    no_endpoints: of(*id, 0, counter::REFUSED_NO_ENDPOINTS),
                    unknown_port: of(*id, 0, counter::REFUSED_UNKNOWN_PORT),
                })
            })
            .collect();
        service_ports.sort_by(|a, b| (&a.name, a.protocol, a.family).cmp(&(&b.name, b.protocol, b.family)));
        Ok(Some(Self { service_ports, inconsistent: of(0, 0, counter::INCONSISTENT) }))
    }
}

impl Counter {
    /// Of all endpoints.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.connections.values().sum()
    }
}

/// Tells the counters at `/metrics`. They are read anew each time.
#[derive(Debug)]
pub struct Collector {
    bpf_root: PathBuf,
    /// Of how many Service ports there are series: those with the most connections. The rest is one sum.
    limit: usize,
}

impl Collector {
    /// Of the maps that are pinned below that directory, whenever there are any.
    #[must_use]
    pub fn new(bpf_root: PathBuf, limit: usize) -> Self {
        Self { bpf_root, limit }
    }
}

/// Under which name `/metrics` has the sum of the Service ports beyond the limit; none can have that name.
const OTHERS: &str = "(others)";

type Labels<'a> = [(&'static str, &'a str); 4];

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counters = match Counters::read(&self.bpf_root) {
            Ok(counters) => counters.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error = %crate::sync::chain(&error), "cannot read what the programs count");
                return Ok(());
            }
        };
        let mut by_use: Vec<_> = counters.service_ports.iter().collect();
        by_use.sort_by_key(|it| std::cmp::Reverse(it.total()));
        let (told, others) = by_use.split_at(self.limit.min(by_use.len()));
        let mut connections = Vec::new();
        let mut refusals = Vec::new();
        for it in told {
            let labels = [it.name.clone(), it.protocol.to_string(), it.family.to_string()];
            let endpoints = it.connections.iter().map(|(endpoint, count)| (endpoint.to_string(), *count));
            connections.extend(endpoints.map(|(endpoint, count)| (labels.clone(), endpoint, count)));
            for (reason, count) in [("no endpoints", it.no_endpoints), ("unknown port", it.unknown_port)] {
                refusals.push((labels.clone(), reason.to_owned(), count));
            }
        }
        if !others.is_empty() {
            let labels = [OTHERS.to_owned(), String::new(), String::new()];
            connections.push((labels.clone(), String::new(), others.iter().map(|it| it.total()).sum()));
            let sum = |of: fn(&Counter) -> u64| others.iter().map(|it| of(it)).sum();
            refusals.push((labels.clone(), "no endpoints".to_owned(), sum(|it| it.no_endpoints)));
            refusals.push((labels, "unknown port".to_owned(), sum(|it| it.unknown_port)));
        }
        let mut family = |name, help, last: &'static str, all: &[([String; 3], String, u64)]| {
            let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for ([service, protocol, family], value, count) in all {
                let labels: Labels<'_> =
                    [("service", service), ("protocol", protocol), ("family", family), (last, value)];
                ConstCounter::new(*count).encode(encoder.encode_family(&labels)?)?;
            }
            Ok(())
        };
        family(
            "tollgate_service_connections",
            "Connections, and UDP flows, that processes on this node made to a Service port, by the endpoint that they were given",
            "endpoint",
            &connections,
        )?;
        family("tollgate_service_refusals", "Connections that were refused, by the reason", "reason", &refusals)?;
        let inconsistent = encoder.encode_descriptor(
            "tollgate_inconsistent_lookups",
            "Connections left to packets because an entry was exchanged again and again; should never be seen",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(counters.inconsistent).encode(inconsistent)
    }
}

/// Every counter, its CPUs added up.
fn sums(maps: &Maps) -> Result<Vec<(CounterKey, u64)>, Error> {
    let read = cpus().and_then(|cpus| maps.counters.entries_of(cpus));
    let entries = read.map_err(|source| Error::Map { what: "read", map: map::COUNTERS, source })?;
    Ok(entries.into_iter().map(|(key, values)| (key, values.iter().sum())).collect())
}

/// Deletes the counters of who is counted no more.
pub(super) fn sweep(maps: &Maps, is_counted: impl Fn(u32, u32) -> bool) -> Result<(), Error> {
    let all = sums(maps)?;
    let gone = all.iter().map(|(key, _)| *key).filter(|key| !is_counted(key.service_id, key.endpoint_id));
    let gone: Vec<_> = gone.collect();
    maps.counters.delete(&gone).map_err(|source| Error::Map { what: "sweep", map: map::COUNTERS, source })
}

/// How many CPUs the kernel reckons with.
pub(super) fn cpus() -> std::io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, error)| error)
}

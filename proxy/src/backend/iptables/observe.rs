//! What the kernel lists, by Service port: the trees are walked as a packet would walk them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tollgate_model::name::Protocol;
use tollgate_model::service::TrafficPolicy;

use super::name::{self, SetName};
use super::object::{Element, Table};
use super::readback::{Listing, option, protocol, target};
use crate::backend::{Observed, ObservedFrontend, ObservedOrigin, ObservedPool, ObservedServicePort};

/// Adds what one family holds. `tables` is what `iptables-save -c` printed, for the counters.
pub(crate) fn observe(listing: &Listing<'_>, tables: &str, observed: &mut Observed) {
    let mut walk = Walk { listing, counters: counters(tables), service_ports: BTreeMap::new() };
    walk.tree(name::CLUSTER, ObservedOrigin::ClusterIp, None);
    walk.tree(name::EXTERNAL, ObservedOrigin::External, None);
    walk.tree(name::NODE_PORTS, ObservedOrigin::NodePort, None);
    let Walk { service_ports, .. } = walk;
    observed.service_ports.extend(service_ports.into_values());
    for rule in rules(listing, name::SERVICES).iter().filter(|rule| target(rule) == Some(name::NODE_PORTS)) {
        observed.node_port_addresses.extend(option(rule, "-d").and_then(address));
    }
    for (set, member) in &listing.foreign {
        observed.foreign.push(format!("{} in the set {}", member, set.text(listing.family)));
    }
}

struct Walk<'a> {
    listing: &'a Listing<'a>,
    /// Packets by rule of a tree, chain and all.
    counters: BTreeMap<(&'a str, &'a str), u64>,
    service_ports: BTreeMap<(String, Protocol), ObservedServicePort>,
}

impl<'a> Walk<'a> {
    fn tree(&mut self, chain: &'a str, origin: ObservedOrigin, ip: Option<IpAddr>) {
        for rule in rules(self.listing, chain) {
            let ip = option(rule, "-d").and_then(address).or(ip);
            let Some(next) = option(rule, "-g") else { continue };
            match option(rule, "--comment") {
                Some(comment) => self.frontend((chain, rule), comment, next, origin, ip),
                None => self.tree(next, origin, ip),
            }
        }
    }

    fn frontend(
        &mut self,
        place: (&'a str, &'a str),
        comment: &str,
        entry: &'a str,
        origin: ObservedOrigin,
        ip: Option<IpAddr>,
    ) {
        let rule = place.1;
        let Some(protocol) = option(rule, "-p").and_then(protocol) else { return };
        let Some(port) = option(rule, "--dport").and_then(|port| port.parse().ok()) else { return };
        let (entry, source_ranges) = self.source_ranges(entry);
        let (traffic_policy, cluster, local) = self.pools(entry);
        let frontend = ObservedFrontend {
            origin,
            ip: ip.filter(|_| origin != ObservedOrigin::NodePort),
            port,
            traffic_policy,
            source_ranges,
            connections: self.counters.get(&place).copied(),
        };
        let pool = |chain: Option<&'a str>| Some(self.pool(chain?, protocol, ip, port));
        let (cluster, local) = (pool(cluster), pool(local));
        let timeout = [entry].into_iter().chain(self.chains_after(entry)).find_map(|chain| self.timeout(chain));
        let service_port = self.service_ports.entry((comment.to_owned(), protocol));
        let service_port = service_port.or_insert_with(|| ObservedServicePort {
            name: comment.to_owned(),
            protocol,
            family: self.listing.family,
            frontends: Vec::new(),
            cluster: None,
            local: None,
            affinity_timeout: None,
        });
        service_port.frontends.push(frontend);
        service_port.cluster = service_port.cluster.take().or(cluster);
        service_port.local = service_port.local.take().or(local);
        service_port.affinity_timeout = service_port.affinity_timeout.or(timeout);
    }

    /// Through the chain of source ranges, where there is one.
    fn source_ranges(&self, entry: &'a str) -> (&'a str, Option<Vec<IpNet>>) {
        if !entry.starts_with("TG-F-") {
            return (entry, None);
        }
        let rules = rules(self.listing, entry);
        let ranges = rules.iter().filter_map(|rule| option(rule, "-s")?.parse().ok()).collect();
        let next = rules.iter().find_map(|rule| option(rule, "-g"));
        (next.unwrap_or(entry), Some(ranges))
    }

    /// The policy of an entry, and the chains of its Cluster and Local sets.
    fn pools(&self, entry: &'a str) -> (TrafficPolicy, Option<&'a str>, Option<&'a str>) {
        let next = |letter: &str| self.chains_after(entry).find(|chain| chain.starts_with(letter));
        match entry.get(..5) {
            Some("TG-S-") => (TrafficPolicy::Cluster, Some(entry), None),
            Some("TG-L-") => (TrafficPolicy::Local, None, Some(entry)),
            _ => match next("TG-L-") {
                Some(local) => (TrafficPolicy::Local, next("TG-S-"), Some(local)),
                None => (TrafficPolicy::Cluster, next("TG-S-"), None),
            },
        }
    }

    fn chains_after(&self, chain: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
        rules(self.listing, chain).iter().filter_map(|rule| option(rule, "-g"))
    }

    fn timeout(&self, pool: &'a str) -> Option<Duration> {
        let endpoint = self.chains_after(pool).find(|chain| chain.starts_with("TG-E-"))?;
        let seconds = rules(self.listing, endpoint).iter().find_map(|rule| option(rule, "--timeout")?.parse().ok())?;
        Some(Duration::from_secs(seconds))
    }

    fn pool(&self, chain: &'a str, protocol: Protocol, ip: Option<IpAddr>, port: u16) -> ObservedPool {
        let mut endpoints = BTreeSet::new();
        self.endpoints(chain, &mut endpoints);
        if !endpoints.is_empty() {
            return ObservedPool::Endpoints(endpoints.into_iter().collect());
        }
        // Of a NodePort, any address tells.
        let drops = self.listing.elements.iter().any(|it| {
            let Element { set, ip: dropped, port: dropped_port, .. } = it;
            *set == SetName::Drop && *dropped_port == Some((protocol, port)) && ip.is_none_or(|ip| ip == *dropped)
        });
        if drops { ObservedPool::Drop } else { ObservedPool::Reject }
    }

    fn endpoints(&self, chain: &'a str, endpoints: &mut BTreeSet<SocketAddr>) {
        for rule in rules(self.listing, chain) {
            endpoints.extend(option(rule, "--to-destination").and_then(|to| to.parse::<SocketAddr>().ok()));
            if let Some(next) = option(rule, "-g").filter(|next| next.starts_with("TG-")) {
                self.endpoints(next, endpoints);
            }
        }
    }
}

fn rules<'a>(listing: &'a Listing<'a>, chain: &'a str) -> &'a [&'a str] {
    listing.chains.get(&(Table::Nat, chain)).map_or(&[], Vec::as_slice)
}

fn address(net: &str) -> Option<IpAddr> {
    let net: IpNet = net.parse().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// `[packets:bytes] -A CHAIN RULE`
fn counters(tables: &str) -> BTreeMap<(&str, &str), u64> {
    let counted = tables.lines().filter_map(|line| {
        let (counters, rest) = line.strip_prefix('[')?.split_once("] -A ")?;
        let (chain, rule) = rest.split_once(' ')?;
        let (packets, _) = counters.split_once(':')?;
        rule.contains("--comment").then_some(((chain, rule), packets.parse().ok()?))
    });
    counted.collect()
}

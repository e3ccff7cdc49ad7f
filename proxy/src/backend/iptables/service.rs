//! One Service port to its chains, its frontends in the trees and its members of sets. Pure, and without memory: names are
//! made from names, so that a restart finds everything where it would put it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;
use tollgate_model::snapshot::{ServicePort, SourceRanges};

use super::name::{Kind, ServiceTag, SetName, comment};
use super::object::{Element, Own};
use super::style::Style;
use super::tree::{Dialled, Leaf};

/// A chain has at most this many rules that pick an endpoint, and then as many that pick a group of them.
const GROUP: usize = 32;
/// The kernel compares 31 random bits (`xt_statistic_info.u.random.probability`).
const PROBABILITY_ONE: u64 = 1 << 31;

/// Which tree a frontend is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dispatch {
    ClusterIp,
    External,
    NodePort,
}

/// What one Service port is in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) own: Own,
    pub(crate) leaves: Vec<(Dispatch, Dialled, Leaf)>,
    pub(crate) elements: BTreeSet<Element>,
}

/// Whether what a Service port is depends on what the snapshot says of the node.
pub(crate) fn depends_on_node(service_port: &ServicePort) -> bool {
    is_external(service_port)
}

fn is_external(service_port: &ServicePort) -> bool {
    service_port.node_port.is_some()
        || service_port.frontends.iter().any(|frontend| frontend.origin != FrontendOrigin::ClusterIp)
}

/// The Service port's objects; empty where it has no frontend of the family.
pub(crate) fn objects(service_port: &ServicePort, style: &Style) -> Objects {
    let builder = Builder {
        service_port,
        style,
        tag: ServiceTag::new(&service_port.name),
        comment: comment(&service_port.name),
        protocol: service_port.name.protocol,
        objects: Objects::default(),
    };
    builder.build()
}

struct Builder<'a> {
    service_port: &'a ServicePort,
    style: &'a Style,
    tag: ServiceTag,
    comment: String,
    protocol: Protocol,
    objects: Objects,
}

impl Builder<'_> {
    fn build(mut self) -> Objects {
        let (service_port, family) = (self.service_port, self.style.family);
        let endpoints = service_port.endpoints(family);
        let is_of_family = |ip: &IpAddr| IpFamily::from(*ip) == family;
        let frontends = service_port.frontends.iter().filter(|frontend| is_of_family(&frontend.ip));
        let (cluster_ips, external): (Vec<&Frontend>, Vec<&Frontend>) =
            frontends.partition(|frontend| frontend.origin == FrontendOrigin::ClusterIp);
        // A NodePort answers in the families that the Service has.
        let node_port = service_port.node_port.filter(|_| !cluster_ips.is_empty() || !external.is_empty());
        let (internal_policy, external_policy) =
            (service_port.internal_traffic_policy, service_port.external_traffic_policy);
        let has_external = node_port.is_some() || !external.is_empty();

        let is_used = |policy| !cluster_ips.is_empty() && internal_policy == policy;
        if has_external || is_used(TrafficPolicy::Cluster) {
            self.pool(Kind::Cluster, &endpoints.cluster);
        }
        if (has_external && external_policy == TrafficPolicy::Local) || is_used(TrafficPolicy::Local) {
            self.pool(Kind::Local, &endpoints.local);
        }
        if has_external {
            self.external_entry();
        }
        for frontend in cluster_ips {
            let kind = pool(internal_policy);
            self.leaf(Dispatch::ClusterIp, Some(frontend.ip), frontend.port, kind);
            self.element(SetName::ClusterIps, frontend.ip, None);
            if self.is_elsewhere(internal_policy) {
                self.element(SetName::Drop, frontend.ip, Some(frontend.port));
            }
        }
        let ranges = ranges(&service_port.source_ranges, family);
        for frontend in external {
            let is_guarded = ranges.is_some() && frontend.origin == FrontendOrigin::LoadBalancerIp;
            let kind = if is_guarded { Kind::SourceRanges } else { Kind::External };
            self.leaf(Dispatch::External, Some(frontend.ip), frontend.port, kind);
            self.untranslated(frontend.ip, frontend.port);
            if let Some(ranges) = ranges.filter(|_| is_guarded) {
                self.guard(ranges, frontend.ip, frontend.port);
            }
        }
        if let Some(port) = node_port {
            self.leaf(Dispatch::NodePort, None, port, Kind::External);
            for ip in &self.style.node_addresses {
                self.untranslated(*ip, port);
            }
        }
        self.objects
    }

    fn leaf(&mut self, dispatch: Dispatch, ip: Option<IpAddr>, port: u16, kind: Kind) {
        let leaf = Leaf { target: self.tag.chain(kind).into(), comment: self.comment.as_str().into() };
        self.objects.leaves.push((dispatch, Dialled { ip, protocol: self.protocol, port }, leaf));
    }

    fn element(&mut self, set: SetName, ip: IpAddr, port: Option<u16>) {
        let port = port.map(|port| (self.protocol, port));
        self.objects.elements.insert(Element { set, ip, port, source: None });
    }

    /// Whether a policy leaves nothing here, while there are endpoints elsewhere (`no-local-drop`).
    fn is_elsewhere(&self, policy: TrafficPolicy) -> bool {
        let endpoints = self.service_port.endpoints(self.style.family);
        policy == TrafficPolicy::Local && endpoints.local.is_empty() && !endpoints.cluster.is_empty()
    }

    fn has_no_endpoint(&self) -> bool {
        let endpoints = self.service_port.endpoints(self.style.family);
        endpoints.cluster.is_empty() && endpoints.local.is_empty()
    }

    /// What becomes of an external frontend's packets that were not translated.
    fn untranslated(&mut self, ip: IpAddr, port: u16) {
        if self.has_no_endpoint() {
            self.element(SetName::Reject, ip, Some(port));
        } else if self.is_elsewhere(self.service_port.external_traffic_policy) {
            self.element(SetName::Drop, ip, Some(port));
        }
    }

    /// `lb-source-ranges`: what comes from elsewhere is dropped, also where nobody serves.
    fn guard(&mut self, ranges: &[IpNet], ip: IpAddr, port: u16) {
        self.element(SetName::Drop, ip, Some(port));
        if self.has_no_endpoint() {
            let port = Some((self.protocol, port));
            let admit = |range: &IpNet| Element { set: SetName::Admit, ip, port, source: Some(*range) };
            self.objects.elements.extend(ranges.iter().map(admit));
        }
        let entry = self.tag.chain(Kind::External);
        let rules = ranges.iter().map(|range| format!("-s {range} -g {entry}")).collect();
        self.objects.own.chains.insert(self.tag.chain(Kind::SourceRanges), rules);
    }

    /// Where outside traffic to external addresses and NodePorts enters.
    fn external_entry(&mut self) {
        let style = self.style;
        let (cluster, local) = (self.tag.chain(Kind::Cluster), self.tag.chain(Kind::Local));
        let rules = match self.service_port.external_traffic_policy {
            TrafficPolicy::Cluster => vec![style.mark(), format!("-g {cluster}")],
            TrafficPolicy::Local => {
                const NODE: &str = "-m addrtype --src-type LOCAL";
                let pods = style.local_pods().into_iter().map(|matches| format!("{matches} -g {cluster}"));
                let node = [format!("{NODE} {}", style.mark()), format!("{NODE} -g {cluster}")];
                pods.chain(node).chain([format!("-g {local}")]).collect()
            }
        };
        self.objects.own.chains.insert(self.tag.chain(Kind::External), rules);
    }

    /// The chain that spreads over endpoints, and its groups.
    fn pool(&mut self, kind: Kind, endpoints: &[Endpoint]) {
        let addresses: Vec<_> = endpoints.iter().map(|it| SocketAddr::new(it.ip, it.port)).collect();
        let mut rules = Vec::with_capacity(addresses.len());
        if let Some(timeout) = self.service_port.affinity_timeout() {
            rules.extend(addresses.iter().map(|endpoint| {
                let (set, chain) = (self.tag.affinity(*endpoint), self.tag.endpoint(*endpoint));
                format!("-m set --match-set {set} src -g {chain}")
            }));
            for endpoint in &addresses {
                self.endpoint(*endpoint, timeout.as_secs());
            }
        }
        if addresses.len() <= GROUP {
            rules.extend(self.picks(&addresses));
        } else {
            let size = addresses.len().div_ceil(GROUP).max(GROUP);
            let mut rest = addresses.len();
            for (index, group) in addresses.chunks(size).enumerate() {
                let chain = self.tag.group(kind, index);
                rules.push(format!("{}-g {chain}", share(group.len(), rest)));
                rest -= group.len();
                let picks = self.picks(group).collect();
                self.objects.own.chains.insert(chain, picks);
            }
        }
        self.objects.own.chains.insert(self.tag.chain(kind), rules);
    }

    /// Rules that pick one of these, each as often.
    fn picks<'a>(&'a self, endpoints: &'a [SocketAddr]) -> impl Iterator<Item = String> + 'a {
        let is_sticky = self.service_port.affinity_timeout().is_some();
        let protocol = self.protocol;
        endpoints.iter().zip((1..=endpoints.len()).rev()).map(move |(endpoint, rest)| {
            let share = share(1, rest);
            match is_sticky {
                true => format!("{share}-g {}", self.tag.endpoint(*endpoint)),
                false => format!("-p {protocol} {share}-j DNAT --to-destination {endpoint}"),
            }
        })
    }

    /// The chain of an endpoint that remembers its clients, and the set of them.
    ///
    /// The timeout is the rule's, so that another does not need another set.
    fn endpoint(&mut self, endpoint: SocketAddr, timeout: u64) {
        let (set, protocol) = (self.tag.affinity(endpoint), self.protocol);
        let rules = vec![
            format!("-j SET --add-set {set} src --exist --timeout {timeout}"),
            format!("-p {protocol} -j DNAT --to-destination {endpoint}"),
        ];
        self.objects.own.chains.insert(self.tag.endpoint(endpoint), rules);
        self.objects.own.affinity.insert(set);
    }
}

fn pool(policy: TrafficPolicy) -> Kind {
    match policy {
        TrafficPolicy::Cluster => Kind::Cluster,
        TrafficPolicy::Local => Kind::Local,
    }
}

fn ranges(ranges: &SourceRanges, family: IpFamily) -> Option<&[IpNet]> {
    match family {
        IpFamily::V4 => ranges.v4.as_deref(),
        IpFamily::V6 => ranges.v6.as_deref(),
    }
}

/// Matches `of` in `rest` packets; the last rule of a chain takes what is left. Written as the kernel keeps it, so that a
/// listing says the same.
fn share(of: usize, rest: usize) -> String {
    if of >= rest {
        return String::new();
    }
    let (of, rest) = (of as u64, rest as u64);
    let kept = (PROBABILITY_ONE * of + rest / 2) / rest;
    // As `%.11f` of kept / 2^31, in whole numbers: half up.
    let digits = (u128::from(kept) * 100_000_000_000 + u128::from(PROBABILITY_ONE / 2)) / u128::from(PROBABILITY_ONE);
    format!("-m statistic --mode random --probability 0.{digits:011} ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_written_as_iptables_lists_them() {
        assert_eq!(share(1, 1), "");
        for (rest, text) in [(2, "0.50000000000"), (3, "0.33333333349"), (10, "0.10000000009"), (7, "0.14285714272")] {
            assert_eq!(share(1, rest), format!("-m statistic --mode random --probability {text} "));
        }
    }
}

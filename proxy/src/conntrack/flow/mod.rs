//! Which flows are stale. Pure.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::Frontend;
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::snapshot::ServicePort;

/// The UDP flows of one frontend that must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleFlows {
    /// The address that the client dialled.
    pub frontend: Frontend,
    /// Where those flows lead: an endpoint that no longer serves, or the frontend itself (flows that were never translated).
    pub to: Vec<SocketAddr>,
}

/// The flows that lead nowhere once a Service port that was `applied` has become what is `wanted`; either may be
/// nothing. Only UDP: the peers of other protocols notice by themselves, and a datagram's sender goes on in the old flow
/// for as long as it sends.
///
/// Flows to endpoints that still serve are left alone, chosen or not, also while they terminate.
#[must_use]
pub fn stale_flows(applied: Option<&ServicePort>, wanted: Option<&ServicePort>) -> Vec<StaleFlows> {
    let is_udp = |it: &&ServicePort| it.name.protocol == Protocol::Udp;
    let (applied, wanted) = (applied.filter(is_udp), wanted.filter(is_udp));
    let frontends = |of: Option<&ServicePort>| -> BTreeSet<Frontend> {
        of.into_iter().flat_map(|of| of.frontends.iter().copied()).collect()
    };
    let (had, has) = (frontends(applied), frontends(wanted));
    let stale = |frontend: &Frontend| {
        let before = applied.filter(|_| had.contains(frontend));
        let after = wanted.filter(|_| has.contains(frontend));
        StaleFlows { frontend: *frontend, to: destinations(frontend, before, after) }
    };
    had.union(&has).map(stale).filter(|stale| !stale.to.is_empty()).collect()
}

/// Where the stale flows of one frontend lead, given the Service port that had it and the one that has it.
fn destinations(frontend: &Frontend, before: Option<&ServicePort>, after: Option<&ServicePort>) -> Vec<SocketAddr> {
    let family = frontend.family();
    let led_to = before.map(|before| reachable(before, family)).unwrap_or_default();
    let serving = after.map(|after| serving(after, family)).unwrap_or_default();
    let mut stale: Vec<_> = led_to.difference(&serving).copied().collect();
    // Before the frontend was known, or had an endpoint, its datagrams may have gone out as they were.
    if led_to.is_empty() && after.is_some() {
        stale.push(SocketAddr::new(frontend.ip, frontend.port));
    }
    stale
}

/// Every endpoint that flows may have been led to.
fn reachable(service_port: &ServicePort, family: IpFamily) -> BTreeSet<SocketAddr> {
    let sets = service_port.endpoints(family);
    [&sets.cluster, &sets.local, &sets.serving].into_iter().flat_map(|set| set.iter()).map(address).collect()
}

/// The endpoints whose flows are left alone.
pub(super) fn serving(service_port: &ServicePort, family: IpFamily) -> BTreeSet<SocketAddr> {
    service_port.endpoints(family).serving.iter().map(address).collect()
}

fn address(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.ip, endpoint.port)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tollgate_model::frontend::FrontendOrigin;
    use tollgate_model::name::{NamespacedName, ServicePortName};
    use tollgate_model::service::{SessionAffinity, TrafficPolicy};
    use tollgate_model::snapshot::{EndpointSets, SourceRanges};

    use super::*;

    fn endpoints(hosts: &[u8]) -> Arc<[Endpoint]> {
        hosts.iter().map(|host| Endpoint { ip: [10, 0, 0, *host].into(), port: 53, is_local: false }).collect()
    }

    /// A Service port with these ClusterIPs, whose connections go to `cluster`, and where `serving` still serve.
    fn dns(vips: &[u8], cluster: &[u8], serving: &[u8]) -> ServicePort {
        let protocol = Protocol::Udp;
        let frontend = |host: &u8| Frontend {
            ip: [10, 96, 0, *host].into(),
            port: 53,
            protocol,
            origin: FrontendOrigin::ClusterIp,
        };
        ServicePort {
            name: ServicePortName { service: NamespacedName::new("test", "dns"), port: "".into(), protocol },
            frontends: vips.iter().map(frontend).collect(),
            node_port: None,
            v4: EndpointSets { cluster: endpoints(cluster), serving: endpoints(serving), ..EndpointSets::default() },
            v6: EndpointSets::default(),
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            session_affinity: SessionAffinity::None,
            source_ranges: SourceRanges::default(),
            health_check_node_port: None,
        }
    }

    fn found(applied: Option<&ServicePort>, wanted: Option<&ServicePort>) -> Vec<String> {
        let stale = stale_flows(applied, wanted);
        stale.iter().flat_map(|it| it.to.iter().map(|to| format!("{} to {}", it.frontend.ip, to.ip()))).collect()
    }

    #[test]
    fn udp_no_stale_flow() {
        let cases = [
            ("nothing changes", Some(dns(&[1], &[1, 2], &[1, 2])), Some(dns(&[1], &[1, 2], &[1, 2])), vec![]),
            ("one comes", Some(dns(&[1], &[1], &[1])), Some(dns(&[1], &[1, 2], &[1, 2])), vec![]),
            ("one goes", Some(dns(&[1], &[1, 2], &[1, 2])), Some(dns(&[1], &[1], &[1])), vec!["10.96.0.1 to 10.0.0.2"]),
            ("one terminates and serves", Some(dns(&[1], &[1, 2], &[1, 2])), Some(dns(&[1], &[1], &[1, 2])), vec![]),
            (
                "it stops serving",
                Some(dns(&[1], &[1], &[1, 2])),
                Some(dns(&[1], &[1], &[1])),
                vec!["10.96.0.1 to 10.0.0.2"],
            ),
            (
                "one is not chosen any more and serves",
                Some(dns(&[1], &[1, 2], &[1, 2])),
                Some(dns(&[1], &[2], &[1, 2])),
                vec![],
            ),
            ("the last goes", Some(dns(&[1], &[1], &[1])), Some(dns(&[1], &[], &[])), vec!["10.96.0.1 to 10.0.0.1"]),
            ("the first comes", Some(dns(&[1], &[], &[])), Some(dns(&[1], &[1], &[1])), vec!["10.96.0.1 to 10.96.0.1"]),
            ("the Service is new", None, Some(dns(&[1], &[1], &[1])), vec!["10.96.0.1 to 10.96.0.1"]),
            (
                "the Service goes",
                Some(dns(&[1], &[1], &[1, 2])),
                None,
                vec!["10.96.0.1 to 10.0.0.1", "10.96.0.1 to 10.0.0.2"],
            ),
            (
                "a frontend comes",
                Some(dns(&[1], &[1], &[1])),
                Some(dns(&[1, 2], &[1], &[1])),
                vec!["10.96.0.2 to 10.96.0.2"],
            ),
            (
                "a frontend goes",
                Some(dns(&[1, 2], &[1], &[1])),
                Some(dns(&[1], &[1], &[1])),
                vec!["10.96.0.2 to 10.0.0.1"],
            ),
        ];
        for (name, applied, wanted, expected) in cases {
            assert_eq!(found(applied.as_ref(), wanted.as_ref()), expected, "{name}");
        }
    }

    #[test]
    fn flows_of_tcp_are_left_alone() {
        let mut web = dns(&[1], &[1], &[1]);
        web.name.protocol = Protocol::Tcp;
        assert_eq!(found(Some(&web), None), Vec::<String>::new());
    }
}

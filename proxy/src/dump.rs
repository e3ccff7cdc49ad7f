//! What the kernel holds, by Service port, for people and for programs: `tollgate-proxy dump`. Pure: the kernel is read by
//! the backends.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tollgate_model::service::TrafficPolicy;

use crate::backend::{Mode, Observed, ObservedFrontend, ObservedOrigin, ObservedPool, ObservedServicePort};

/// Between columns.
const GAP: usize = 3;
const HEADER: [&str; 9] =
    ["SERVICE PORT", "PROTOCOL", "FAMILY", "KIND", "ADDRESS", "POLICY", "CONNECTIONS", "AFFINITY", "SOURCES"];

type Row = [String; HEADER.len()];

/// A line for each frontend and each endpoint. Each begins with its Service port, so that `grep` finds all of one.
#[must_use]
pub fn table(modes: &[(Mode, Observed)]) -> String {
    if modes.is_empty() {
        return "the kernel holds nothing of Tollgate's\n".to_owned();
    }
    let mut text = String::new();
    for (index, (mode, observed)) in modes.iter().enumerate() {
        let addresses: Vec<_> = observed.node_port_addresses.iter().map(ToString::to_string).collect();
        let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
        let gap = if index == 0 { "" } else { "\n" };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{gap}mode {mode}, NodePorts answer on {addresses}\n");
        let mut rows = vec![HEADER.map(str::to_owned)];
        rows.extend(observed.service_ports.iter().flat_map(rows_of));
        line_up(&rows, &mut text);
        for line in &observed.foreign {
            let _ = writeln!(text, "not Tollgate's, and among what is: {line}");
        }
    }
    text
}

/// The same for programs.
#[must_use]
pub fn json(modes: &[(Mode, Observed)]) -> Value {
    let mode = |(mode, observed): &(Mode, Observed)| {
        json!({
            "mode": mode,
            "nodePortAddresses": observed.node_port_addresses,
            "servicePorts": observed.service_ports.iter().map(service_port).collect::<Vec<_>>(),
            "foreign": observed.foreign,
        })
    };
    json!({ "modes": modes.iter().map(mode).collect::<Vec<_>>() })
}

fn rows_of(service_port: &ObservedServicePort) -> Vec<Row> {
    let row = |kind: &str, address: String, policy: String| {
        let ObservedServicePort { name, protocol, family, .. } = service_port;
        let mut row = Row::default();
        row[..6].clone_from_slice(&[
            name.clone(),
            protocol.to_string(),
            family.to_string(),
            kind.to_owned(),
            address,
            policy,
        ]);
        row
    };
    let affinity = service_port.affinity_timeout.map(|timeout| format!("{}s", timeout.as_secs())).unwrap_or_default();
    let frontends = service_port.frontends.iter().map(|frontend| {
        let mut row = row(origin(frontend), dialled(frontend), policy(frontend.traffic_policy).to_owned());
        row[6] = frontend.connections.map(|count| count.to_string()).unwrap_or_default();
        row[7].clone_from(&affinity);
        let sources = frontend.source_ranges.iter().flatten().map(ToString::to_string);
        row[8] = sources.collect::<Vec<_>>().join(",");
        row
    });
    let mut rows: Vec<_> = frontends.collect();
    let mut endpoints: BTreeMap<SocketAddr, BTreeSet<TrafficPolicy>> = BTreeMap::new();
    for (policy_of, pool) in pools(service_port) {
        match pool {
            ObservedPool::Endpoints(all) => {
                all.iter().for_each(|endpoint| _ = endpoints.entry(*endpoint).or_default().insert(policy_of));
            }
            ObservedPool::Reject => rows.push(row("no endpoint", "rejects".to_owned(), policy(policy_of).to_owned())),
            ObservedPool::Drop => rows.push(row("no endpoint", "drops".to_owned(), policy(policy_of).to_owned())),
        }
    }
    rows.extend(endpoints.into_iter().map(|(endpoint, policies)| {
        let policies: Vec<_> = policies.into_iter().map(policy).collect();
        row("endpoint", endpoint.to_string(), policies.join(","))
    }));
    rows
}

fn service_port(service_port: &ObservedServicePort) -> Value {
    let frontend = |frontend: &ObservedFrontend| {
        json!({
            "kind": origin(frontend),
            "ip": frontend.ip,
            "port": frontend.port,
            "trafficPolicy": policy(frontend.traffic_policy),
            "sourceRanges": frontend.source_ranges,
            "connections": frontend.connections,
        })
    };
    let pools: BTreeMap<_, _> = pools(service_port)
        .map(|(of, pool)| {
            let pool = match pool {
                ObservedPool::Endpoints(endpoints) => json!({ "endpoints": endpoints }),
                ObservedPool::Reject => json!({ "endpoints": [], "without": "reject" }),
                ObservedPool::Drop => json!({ "endpoints": [], "without": "drop" }),
            };
            (policy(of), pool)
        })
        .collect();
    json!({
        "name": service_port.name,
        "protocol": service_port.protocol.as_str(),
        "family": service_port.family.to_string(),
        "frontends": service_port.frontends.iter().map(frontend).collect::<Vec<_>>(),
        "pools": pools,
        "affinityTimeoutSeconds": service_port.affinity_timeout.map(|timeout| timeout.as_secs()),
    })
}

fn pools(service_port: &ObservedServicePort) -> impl Iterator<Item = (TrafficPolicy, &ObservedPool)> {
    let ObservedServicePort { cluster, local, .. } = service_port;
    let pools = [(TrafficPolicy::Cluster, cluster), (TrafficPolicy::Local, local)];
    pools.into_iter().filter_map(|(policy, pool)| Some((policy, pool.as_ref()?)))
}

fn dialled(frontend: &ObservedFrontend) -> String {
    match frontend.ip {
        Some(ip) => SocketAddr::new(ip, frontend.port).to_string(),
        None => format!("*:{}", frontend.port),
    }
}

fn origin(frontend: &ObservedFrontend) -> &'static str {
    match frontend.origin {
        ObservedOrigin::ClusterIp => "ClusterIP",
        ObservedOrigin::External => "External",
        ObservedOrigin::NodePort => "NodePort",
    }
}

fn policy(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

/// Lines have no blanks at their end.
fn line_up(rows: &[Row], text: &mut String) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0) + GAP;
    let widths: Vec<_> = (0..HEADER.len()).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<String>().trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tollgate_model::name::{IpFamily, Protocol};

    use super::*;

    fn observed() -> Vec<(Mode, Observed)> {
        let frontend = |origin, ip: Option<&str>, port| ObservedFrontend {
            origin,
            ip: ip.map(|ip| ip.parse().unwrap()),
            port,
            traffic_policy: TrafficPolicy::Cluster,
            source_ranges: None,
            connections: Some(7),
        };
        let endpoints = |hosts: &[u8]| {
            Some(ObservedPool::Endpoints(hosts.iter().map(|host| ([10, 244, 0, *host], 8080).into()).collect()))
        };
        let mut outside = frontend(ObservedOrigin::External, Some("203.0.113.1"), 80);
        outside.traffic_policy = TrafficPolicy::Local;
        outside.source_ranges = Some(vec!["192.0.2.0/26".parse().unwrap(), "192.0.2.100/32".parse().unwrap()]);
        let web = ObservedServicePort {
            name: "shop/web:http".to_owned(),
            protocol: Protocol::Tcp,
            family: IpFamily::V4,
            frontends: vec![frontend(ObservedOrigin::ClusterIp, Some("10.96.0.1"), 80), outside],
            cluster: endpoints(&[1, 12]),
            local: endpoints(&[1]),
            affinity_timeout: Some(Duration::from_secs(60)),
        };
        let away = ObservedServicePort {
            name: "shop/away".to_owned(),
            protocol: Protocol::Udp,
            family: IpFamily::V6,
            frontends: vec![ObservedFrontend { connections: None, ..frontend(ObservedOrigin::NodePort, None, 30_001) }],
            cluster: Some(ObservedPool::Reject),
            local: Some(ObservedPool::Drop),
            affinity_timeout: None,
        };
        let observed = Observed {
            service_ports: vec![web, away],
            node_port_addresses: vec!["192.0.2.11".parse().unwrap()],
            foreign: vec!["ip tollgate: chain intruder".to_owned()],
        };
        vec![(Mode::Nftables, observed)]
    }

    #[test]
    fn every_line_of_the_table_names_its_service_port() {
        let expected = "\
mode nftables, NodePorts answer on 192.0.2.11

SERVICE PORT    PROTOCOL   FAMILY   KIND          ADDRESS            POLICY          CONNECTIONS   AFFINITY   SOURCES
shop/web:http   tcp        IPv4     ClusterIP     10.96.0.1:80       Cluster         7             60s
shop/web:http   tcp        IPv4     External      203.0.113.1:80     Local           7             60s        192.0.2.0/26,192.0.2.100/32
shop/web:http   tcp        IPv4     endpoint      10.244.0.1:8080    Cluster,Local
shop/web:http   tcp        IPv4     endpoint      10.244.0.12:8080   Cluster
shop/away       udp        IPv6     NodePort      *:30001            Cluster
shop/away       udp        IPv6     no endpoint   rejects            Cluster
shop/away       udp        IPv6     no endpoint   drops              Local
not Tollgate's, and among what is: ip tollgate: chain intruder
";
        let found = table(&observed());
        assert!(found == expected, "{found}");
        assert_eq!(table(&[]), "the kernel holds nothing of Tollgate's\n");
    }

    #[test]
    fn json_says_the_same() {
        let found = json(&observed());
        let [web, away] = [0, 1].map(|index| &found["modes"][0]["servicePorts"][index]);
        assert_eq!(found["modes"][0]["mode"], "nftables");
        assert_eq!(web["frontends"][1]["sourceRanges"], json!(["192.0.2.0/26", "192.0.2.100/32"]));
        assert_eq!(web["frontends"][0]["connections"], 7);
        assert_eq!(web["pools"]["Local"], json!({ "endpoints": ["10.244.0.1:8080"] }));
        assert_eq!(web["affinityTimeoutSeconds"], 60);
        assert_eq!(away["frontends"][0]["ip"], Value::Null);
        assert_eq!(away["pools"]["Local"], json!({ "endpoints": [], "without": "drop" }));
    }
}

//! What `get` shows of each kind.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodStatus, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Error;
use tollgate_api::v1::{Kind, Object};

const NONE: &str = "<none>";
/// More endpoints of a slice are counted, not shown, as by kubectl.
const SHOWN_ENDPOINTS: usize = 3;
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The names of the columns; more of them where it may be `wide`.
pub(super) fn header(kind: Kind, wide: bool) -> Vec<String> {
    let (narrow, more): (&[&str], &[&str]) = match kind {
        Kind::Service => (&["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"], &["SELECTOR"]),
        Kind::EndpointSlice => (&["NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"], &["SERVICE"]),
        Kind::Node => (&["NAME", "INTERNAL-IP", "ZONE", "AGE"], &["EXTERNAL-IP", "POD-CIDR"]),
        Kind::Pod => (&["NAME", "READY", "STATUS", "AGE"], &["IP", "NODE"]),
        Kind::Namespace | Kind::Unspecified => (&["NAME", "STATUS", "AGE"], &[]),
    };
    let more = if wide { more } else { &[] };
    narrow.iter().chain(more).map(ToString::to_string).collect()
}

/// An object's cells under the header of its kind.
pub(super) fn row(kind: Kind, object: &Object, wide: bool, now: Timestamp) -> Result<Vec<String>, Error> {
    let json = &object.json;
    let (mut cells, more) = match kind {
        Kind::Service => service(&serde_json::from_slice(json)?, now),
        Kind::EndpointSlice => endpoint_slice(&serde_json::from_slice(json)?, wide, now),
        Kind::Node => node(&serde_json::from_slice(json)?, now),
        Kind::Pod => pod(&serde_json::from_slice(json)?, now),
        Kind::Namespace | Kind::Unspecified => namespace(&serde_json::from_slice(json)?, now),
    };
    if wide {
        cells.extend(more);
    }
    Ok(cells)
}

type Cells = (Vec<String>, Vec<String>);

fn service(service: &Service, now: Timestamp) -> Cells {
    let spec = service.spec.clone().unwrap_or_default();
    let service_type = spec.type_.clone().unwrap_or_default();
    let mut external: Vec<String> = spec.external_ips.clone().unwrap_or_default();
    if service_type == "ExternalName" {
        external.extend(spec.external_name.clone());
    }
    if service_type == "LoadBalancer" {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
        let ingress = ingress.iter().filter_map(|ingress| ingress.ip.clone().or(ingress.hostname.clone()));
        external.splice(0..0, ingress);
        if external.is_empty() {
            external.push("<pending>".to_owned());
        }
    }
    let ports = spec.ports.iter().flatten().map(port);
    let selector = spec.selector.iter().flatten().map(|(label, value)| format!("{label}={value}"));
    let cells = vec![
        name(&service.metadata),
        service_type,
        or_none(spec.cluster_ip.iter().cloned()),
        or_none(external.into_iter()),
        or_none(ports),
        age(&service.metadata, now),
    ];
    (cells, vec![or_none(selector)])
}

fn port(port: &ServicePort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match port.node_port.filter(|number| *number != 0) {
        Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
        None => format!("{}/{protocol}", port.port),
    }
}

fn endpoint_slice(slice: &EndpointSlice, wide: bool, now: Timestamp) -> Cells {
    let ports = slice.ports.iter().flatten().map(|port| port.port.map_or("*".to_owned(), |number| number.to_string()));
    let endpoints = slice.endpoints.iter().flatten();
    let addresses: Vec<String> = endpoints.filter_map(|endpoint| endpoint.addresses.first().cloned()).collect();
    let shown = if wide { addresses.len() } else { SHOWN_ENDPOINTS.min(addresses.len()) };
    let mut endpoints = or_none(addresses[..shown].iter().cloned());
    if addresses.len() > shown {
        endpoints.push_str(&format!(" + {} more...", addresses.len() - shown));
    }
    let ports: Vec<String> = ports.collect();
    let ports = if ports.is_empty() { "<unset>".to_owned() } else { ports.join(",") };
    let cells = vec![name(&slice.metadata), slice.address_type.clone(), ports, endpoints, age(&slice.metadata, now)];
    (cells, vec![label(&slice.metadata, SERVICE_LABEL)])
}

fn node(node: &Node, now: Timestamp) -> Cells {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of_type = |wanted: &str| {
        let found = addresses.iter().filter(|address| address.type_ == wanted);
        or_none(found.map(|address| address.address.clone()))
    };
    let spec = node.spec.clone().unwrap_or_default();
    let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let cells =
        vec![name(&node.metadata), of_type("InternalIP"), label(&node.metadata, ZONE_LABEL), age(&node.metadata, now)];
    (cells, vec![of_type("ExternalIP"), or_none(cidrs.into_iter())])
}

fn pod(pod: &Pod, now: Timestamp) -> Cells {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let ready = match status.container_statuses.as_deref().unwrap_or_default() {
        // Nobody has to write them here; by the condition the pod is an endpoint that is ready.
        [] if is_ready(&status) => spec.containers.len(),
        statuses => statuses.iter().filter(|container| container.ready).count(),
    };
    let cells = vec![
        name(&pod.metadata),
        format!("{ready}/{}", spec.containers.len()),
        status.phase.unwrap_or_else(|| "Unknown".to_owned()),
        age(&pod.metadata, now),
    ];
    (cells, vec![or_none(status.pod_ip.into_iter()), or_none(spec.node_name.into_iter())])
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn namespace(namespace: &Namespace, now: Timestamp) -> Cells {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.clone());
    (vec![name(&namespace.metadata), or_none(phase.into_iter()), age(&namespace.metadata, now)], Vec::new())
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn label(metadata: &ObjectMeta, label: &str) -> String {
    or_none(metadata.labels.iter().filter_map(|labels| labels.get(label).cloned()))
}

fn age(metadata: &ObjectMeta, now: Timestamp) -> String {
    let Some(created) = &metadata.creation_timestamp else { return "<unknown>".to_owned() };
    age_text(now.as_second() - created.0.as_second())
}

fn or_none(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
    if words.is_empty() { NONE.to_owned() } else { words.join(",") }
}

/// As exact as is of interest: the younger, the more.
fn age_text(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => pair(days / 365, "y", days % 365, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_as_exact_as_is_of_interest() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (3600, "60m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (40_000, "11h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (70_000_000, "2y80d"),
        ] {
            assert_eq!(age_text(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn rows_show_what_people_look_for() {
        let service = |spec: &str| format!(r#"{{"metadata":{{"name":"web"}},"spec":{spec}}}"#);
        let rows = [
            (
                Kind::Service,
                service(r#"{"type":"ClusterIP","clusterIP":"10.96.0.9","ports":[{"port":80,"protocol":"TCP"},{"port":53,"protocol":"UDP"}],"selector":{"a":"b"}}"#),
                "web|ClusterIP|10.96.0.9|<none>|80/TCP,53/UDP|<unknown>|a=b",
            ),
            (
                Kind::Service,
                service(r#"{"type":"NodePort","clusterIP":"10.96.0.9","externalIPs":["192.0.2.1"],"ports":[{"port":80,"nodePort":30080}]}"#),
                "web|NodePort|10.96.0.9|192.0.2.1|80:30080/TCP|<unknown>|<none>",
            ),
            (
                Kind::Service,
                service(r#"{"type":"LoadBalancer","clusterIP":"10.96.0.9","ports":[{"port":80}]}"#),
                "web|LoadBalancer|10.96.0.9|<pending>|80/TCP|<unknown>|<none>",
            ),
            (
                Kind::Service,
                service(r#"{"type":"ExternalName","externalName":"example.org"}"#),
                "web|ExternalName|<none>|example.org|<none>|<unknown>|<none>",
            ),
            (
                Kind::Node,
                r#"{"metadata":{"name":"n","labels":{"topology.kubernetes.io/zone":"z"}},"spec":{"podCIDR":"10.1.0.0/24"},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"},{"type":"InternalIP","address":"fd00::1"}]}}"#.into(),
                "n|10.0.0.1,fd00::1|z|<unknown>|<none>|10.1.0.0/24",
            ),
            (Kind::Namespace, r#"{"metadata":{"name":"n"},"status":{"phase":"Active"}}"#.into(), "n|Active|<unknown>"),
            (
                Kind::Pod,
                r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}],"nodeName":"n"},"status":{"podIP":"10.1.0.2"}}"#.into(),
                "p|0/1|Unknown|<unknown>|10.1.0.2|n",
            ),
            (
                Kind::Pod,
                r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c"},{"name":"d"}]},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#.into(),
                "p|2/2|Running|<unknown>|<none>|<none>",
            ),
            (
                Kind::Pod,
                r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c"},{"name":"d"}]},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"c","ready":true,"image":"","imageID":"","restartCount":0}]}}"#.into(),
                "p|1/2|Running|<unknown>|<none>|<none>",
            ),
        ];
        for (kind, json, expected) in rows {
            let object = Object { json: json.into_bytes(), ..Object::default() };
            let cells = row(kind, &object, true, Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(cells.join("|"), expected);
            assert_eq!(cells.len(), header(kind, true).len(), "{kind}");
        }
    }

    #[test]
    fn long_slices_are_cut_unless_wide() {
        let endpoint = |n| format!(r#"{{"addresses":["10.0.0.{n}"]}}"#);
        let endpoints: Vec<String> = (1..=5).map(endpoint).collect();
        let json = format!(
            r#"{{"metadata":{{"name":"s"}},"addressType":"IPv4","ports":[{{"port":80}},{{}}],"endpoints":[{}]}}"#,
            endpoints.join(",")
        );
        let object = Object { json: json.into_bytes(), ..Object::default() };
        let shown = |wide| row(Kind::EndpointSlice, &object, wide, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(shown(false)[2..4], ["80,*", "10.0.0.1,10.0.0.2,10.0.0.3 + 2 more..."]);
        assert_eq!(shown(true)[3], "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5");
    }
}

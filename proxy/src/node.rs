//! This node's Node object, where there is no kubelet that makes it and keeps it right.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tollgate_api::connect::Client;
use tollgate_api::v1::{ApplyRequest, GetRequest, Key};
use tonic::{Code, Status};

/// The annotation by which a proxy knows the Node object that it has made, also after a restart.
const REGISTERED_BY: &str = "tollgate.dev/registered-by";
const PROXY: &str = "tollgate-proxy";

/// What the Node object says.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The node's name.
    pub name: String,
    /// Its addresses, the newest.
    pub ips: watch::Receiver<Vec<IpAddr>>,
    /// Its zone.
    pub zone: Option<String>,
}

impl Registration {
    /// Makes the Node object if there is none, and gives it the node's addresses if it was made here. Anybody else's is left
    /// as it is.
    ///
    /// # Errors
    /// When the control plane refuses.
    pub async fn ensure_node(&mut self, client: &mut Client) -> Result<(), Status> {
        let (node, ips) = (&self.name, self.ips.borrow_and_update().clone());
        let object = match client.get(GetRequest { key: Some(Key::node(node)) }).await {
            Ok(answer) => {
                let stored = answer.into_inner().object.map(|object| object.json).unwrap_or_default();
                let stored = serde_json::from_slice(&stored)
                    .map_err(|error| Status::data_loss(format!("the stored Node {node} is no JSON: {error}")))?;
                if !is_ours(&stored) {
                    tracing::info!(node, "this node is registered already; its object is left as it is");
                    return Ok(());
                }
                // Between one address and the next there may be none for a moment.
                let Some(object) = with_addresses(stored, &ips).filter(|_| !ips.is_empty()) else { return Ok(()) };
                tracing::info!(node, addresses = ?ips, "this node's addresses changed; writing them to its object");
                object
            }
            Err(status) if status.code() == Code::NotFound => {
                tracing::info!(node, addresses = ?ips, zone = ?self.zone, "registering this node, which the control plane does not know");
                self.object(&ips)
            }
            Err(status) => return Err(status),
        };
        client.apply(ApplyRequest { json: object.to_string().into_bytes() }).await?;
        Ok(())
    }

    /// Until the addresses are others than when the object was last seen to.
    pub async fn changed(&mut self) {
        if self.ips.changed().await.is_err() {
            // They never will be: they were given, and are not those of the interfaces.
            std::future::pending::<()>().await;
        }
    }

    fn object(&self, ips: &[IpAddr]) -> Value {
        let mut labels = Map::new();
        labels.insert("kubernetes.io/hostname".to_owned(), json!(self.name));
        if let Some(zone) = &self.zone {
            labels.insert("topology.kubernetes.io/zone".to_owned(), json!(zone));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": self.name, "labels": labels, "annotations": { REGISTERED_BY: PROXY } },
            "status": { "addresses": internal_ips(ips) },
        })
    }
}

fn is_ours(node: &Value) -> bool {
    node["metadata"]["annotations"][REGISTERED_BY] == PROXY
}

fn internal_ips(ips: &[IpAddr]) -> Vec<Value> {
    ips.iter().map(|ip| json!({ "type": "InternalIP", "address": ip.to_string() })).collect()
}

/// The object with these internal addresses, beside others that it may have; `None` where it has them.
fn with_addresses(mut node: Value, ips: &[IpAddr]) -> Option<Value> {
    let (stored, others): (Vec<Value>, Vec<Value>) = node["status"]["addresses"]
        .as_array()
        .cloned()
        .unwrap_or_default()
        .into_iter()
        .partition(|address| address["type"] == "InternalIP");
    let wanted = internal_ips(ips);
    if stored == wanted {
        return None;
    }
    node["status"]["addresses"] = wanted.into_iter().chain(others).collect();
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn object() -> Value {
        let (_, none) = watch::channel(Vec::new());
        let registration = Registration { name: "n1".to_owned(), ips: none, zone: Some("z1".to_owned()) };
        registration.object(&ips(&["192.0.2.1", "2001:db8::1"]))
    }

    #[test]
    fn the_object_has_addresses_and_the_zone_label() {
        let object = object();
        assert_eq!(object["metadata"]["labels"]["topology.kubernetes.io/zone"], "z1");
        assert_eq!(object["status"]["addresses"][1]["address"], "2001:db8::1");
        assert!(is_ours(&object));
    }

    #[test]
    fn only_what_a_proxy_has_made_is_its_own() {
        let mut object = object();
        object["metadata"]["annotations"] = json!({ "tollgate.dev/registered-by": "somebody" });
        assert!(!is_ours(&object));
        object["metadata"]["annotations"] = Value::Null;
        assert!(!is_ours(&object));
    }

    #[test]
    fn addresses_are_exchanged_and_the_rest_is_kept() {
        assert_eq!(with_addresses(object(), &ips(&["192.0.2.1", "2001:db8::1"])), None);
        let mut stored = object();
        let name = json!({ "type": "Hostname", "address": "n1" });
        stored["status"]["addresses"].as_array_mut().unwrap().push(name.clone());
        stored["spec"] = json!({ "podCIDR": "10.244.1.0/24" });
        let written = with_addresses(stored.clone(), &ips(&["192.0.2.7"])).unwrap();
        let internal = json!({ "type": "InternalIP", "address": "192.0.2.7" });
        assert_eq!(written["status"]["addresses"], json!([internal, name]));
        assert_eq!(written["spec"], stored["spec"]);
        assert_eq!(written["metadata"], stored["metadata"]);
    }
}

//! This node's Node object, where there is no kubelet that makes it.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use tollgate_api::connect::Client;
use tollgate_api::v1::{ApplyRequest, GetRequest, Key};
use tonic::{Code, Status};

/// What the Node object says.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The node's name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its zone.
    pub zone: Option<String>,
}

impl Registration {
    /// Makes the Node object, unless it exists.
    ///
    /// # Errors
    /// When the control plane refuses.
    pub async fn ensure_node(&self, client: &mut Client) -> Result<(), Status> {
        let node = &self.name;
        let key = Some(Key::node(node));
        match client.get(GetRequest { key }).await {
            Ok(_) => {
                tracing::info!(node, "this node is registered already; its object is left as it is");
                return Ok(());
            }
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status),
        }
        let json = self.object().to_string().into_bytes();
        client.apply(ApplyRequest { json }).await?;
        tracing::info!(node, addresses = ?self.ips, zone = ?self.zone, "registered this node, which the control plane did not know");
        Ok(())
    }

    fn object(&self) -> Value {
        let mut labels = Map::new();
        labels.insert("kubernetes.io/hostname".to_owned(), json!(self.name));
        if let Some(zone) = &self.zone {
            labels.insert("topology.kubernetes.io/zone".to_owned(), json!(zone));
        }
        let addresses: Vec<Value> =
            self.ips.iter().map(|ip| json!({ "type": "InternalIP", "address": ip.to_string() })).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": self.name, "labels": labels },
            "status": { "addresses": addresses },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_addresses_and_the_zone_label() {
        let ips = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let object = Registration { name: "n1".to_owned(), ips, zone: Some("z1".to_owned()) }.object();
        assert_eq!(object["metadata"]["labels"]["topology.kubernetes.io/zone"], "z1");
        assert_eq!(object["status"]["addresses"][1]["address"], "2001:db8::1");
    }
}

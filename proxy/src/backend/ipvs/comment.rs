//! What members of sets say of the frontends that they are: `dump` reads it, and whoever lists the sets.

use std::sync::Arc;

use tollgate_model::name::ServicePortName;
use tollgate_model::service::TrafficPolicy;

use crate::backend::ObservedOrigin;
use crate::backend::iptables::name;

/// `IPSET_MAX_COMMENT_SIZE`
const MAX: usize = 255;

/// A frontend's, such as `ClusterIP/Cluster shop/web:http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Comment<'a> {
    pub(crate) origin: ObservedOrigin,
    pub(crate) policy: TrafficPolicy,
    /// The Service port's. Cut, with a hash, where it is longer than a comment can be.
    pub(crate) name: &'a str,
}

impl<'a> Comment<'a> {
    /// The text for a Service port's frontend.
    pub(crate) fn text(origin: ObservedOrigin, policy: TrafficPolicy, name: &ServicePortName) -> Arc<str> {
        let (full, kind) = (name::comment(name), kind(origin, policy));
        let room = MAX - kind.len() - 1;
        if full.len() <= room {
            return format!("{kind} {full}").into();
        }
        // What is at its end tells it from others.
        let end = &full[full.len() - 32..];
        format!("{kind} {}{end}", &full[..room - 32]).into()
    }

    /// Reads one.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (kind, name) = text.split_once(' ')?;
        let (origin, policy) = kind.split_once('/')?;
        let origin = match origin {
            "ClusterIP" => ObservedOrigin::ClusterIp,
            "External" => ObservedOrigin::External,
            "NodePort" => ObservedOrigin::NodePort,
            _ => return None,
        };
        let policy = match policy {
            "Cluster" => TrafficPolicy::Cluster,
            "Local" => TrafficPolicy::Local,
            _ => return None,
        };
        Some(Self { origin, policy, name })
    }
}

fn kind(origin: ObservedOrigin, policy: TrafficPolicy) -> String {
    let origin = match origin {
        ObservedOrigin::ClusterIp => "ClusterIP",
        ObservedOrigin::External => "External",
        ObservedOrigin::NodePort => "NodePort",
    };
    let policy = match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    };
    format!("{origin}/{policy}")
}

#[cfg(test)]
mod tests {
    use tollgate_model::name::{NamespacedName, Protocol};

    use super::*;

    #[test]
    fn comments_are_read_as_they_are_written_and_fit() {
        let named = |namespace: &str, name: &str| ServicePortName {
            service: NamespacedName::new(namespace, name),
            port: "http".into(),
            protocol: Protocol::Tcp,
        };
        let text = Comment::text(ObservedOrigin::External, TrafficPolicy::Local, &named("shop", "web"));
        let read = Comment::parse(&text).unwrap();
        assert_eq!(
            read,
            Comment { origin: ObservedOrigin::External, policy: TrafficPolicy::Local, name: "shop/web:http" }
        );
        let [one, other] = ["x", "y"].map(|end| {
            let long = named(&"n".repeat(63), &format!("{}{end}", "s".repeat(252)));
            Comment::text(ObservedOrigin::ClusterIp, TrafficPolicy::Cluster, &long)
        });
        assert!(one.len() <= MAX, "{}", one.len());
        assert_ne!(one, other);
    }
}

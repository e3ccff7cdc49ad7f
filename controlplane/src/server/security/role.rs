//! What each group may do.
//!
//! | group | who | what |
//! |---|---|---|
//! | `system:masters` | an operator | everything |
//! | `system:nodes`, as user `system:node:NAME` | the proxy of that node | read what proxies need; write the Node `NAME` |
//! | `tollgate:viewers` | backups, dashboards | read everything |
//!
//! The first two are Kubernetes' names with Kubernetes' meaning; it has no group for the third.

use std::fmt;

use tollgate_api::v1::{Key, Kind};

use super::identity::Identity;

/// May do everything.
pub(crate) const MASTERS: &str = "system:masters";
/// The proxies.
pub(crate) const NODES: &str = "system:nodes";
/// Begins the user name of a node.
pub(crate) const NODE_PREFIX: &str = "system:node:";
/// May read everything.
pub(crate) const VIEWERS: &str = "tollgate:viewers";

/// What a proxy works with.
const READ_BY_NODES: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

/// What a call is about to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action<'a> {
    /// Read one object.
    Get(&'a Key),
    /// Read the objects of a kind.
    List(Kind),
    /// Follow the objects of a kind.
    Watch(Kind),
    /// Make or replace an object.
    Apply(&'a Key),
    /// Remove an object.
    Delete(&'a Key),
}

/// An identity without the right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{identity} may not {action}: {needed}")]
pub(crate) struct Denied {
    identity: String,
    action: String,
    needed: String,
}

// === impl Action ===

impl Action<'_> {
    fn kind(self) -> Kind {
        match self {
            Action::Get(key) | Action::Apply(key) | Action::Delete(key) => key.kind(),
            Action::List(kind) | Action::Watch(kind) => kind,
        }
    }

    fn is_read(self) -> bool {
        matches!(self, Action::Get(_) | Action::List(_) | Action::Watch(_))
    }
}

impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Get(key) => write!(f, "get {key}"),
            Action::List(kind) => write!(f, "list {}", kind.plural()),
            Action::Watch(kind) => write!(f, "watch {}", kind.plural()),
            Action::Apply(key) => write!(f, "apply {key}"),
            Action::Delete(key) => write!(f, "delete {key}"),
        }
    }
}

/// Whether an identity may do it.
pub(crate) fn authorize(identity: &Identity, action: Action<'_>) -> Result<(), Denied> {
    let is_in = |group: &str| identity.groups.contains(group);
    if is_in(MASTERS) || (is_in(VIEWERS) && action.is_read()) {
        return Ok(());
    }
    let node = identity.user.strip_prefix(NODE_PREFIX).filter(|name| is_in(NODES) && !name.is_empty());
    let is_of_node = node.is_some_and(|node| match action {
        Action::Apply(key) => key.kind() == Kind::Node && key.name == node,
        _ => action.is_read() && READ_BY_NODES.contains(&action.kind()),
    });
    if is_of_node {
        return Ok(());
    }
    Err(Denied { identity: identity.to_string(), action: action.to_string(), needed: needed(identity, node, action) })
}

/// What would be enough.
fn needed(identity: &Identity, node: Option<&str>, action: Action<'_>) -> String {
    let enough = match action.is_read() {
        true => format!("it takes group {MASTERS} (operators) or {VIEWERS} (readers)"),
        false => format!("it takes group {MASTERS} (operators)"),
    };
    match node {
        Some(_) if action.is_read() => format!("a node reads services, endpointslices and nodes; {enough}"),
        Some(node) => format!("a node writes its own Node alone, node {node}; {enough}"),
        None if identity.groups.contains(NODES) => {
            format!("group {NODES} is for users {NODE_PREFIX}NAME; {enough}")
        }
        None => enough,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_may_what_it_needs_and_no_more() {
        let identity = |user: &str, groups: &[&str]| Identity {
            user: user.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        };
        let operator = identity("alice", &["system:masters", "others"]);
        let viewer = identity("backup", &["tollgate:viewers"]);
        let node = identity("system:node:a", &["system:nodes"]);
        let nobody = [
            identity("bob", &[]),
            identity("bob", &["system:nodes"]),
            identity("system:node:", &["system:nodes"]),
            identity("system:node:a", &[]),
            identity("system:masters", &["masters"]),
        ];
        let (web, own, other) = (Key::service("default", "web"), Key::node("a"), Key::node("b"));
        let pod = Key::new(Kind::Pod, "default", "a");
        for (action, node_may) in [
            (Action::Get(&web), true),
            (Action::List(Kind::Service), true),
            (Action::Watch(Kind::Service), true),
            (Action::Watch(Kind::EndpointSlice), true),
            (Action::Watch(Kind::Node), true),
            (Action::Get(&other), true),
            (Action::Apply(&own), true),
            (Action::Apply(&other), false),
            (Action::Apply(&web), false),
            (Action::Apply(&pod), false),
            (Action::Delete(&own), false),
            (Action::Delete(&web), false),
            (Action::Get(&pod), false),
            (Action::List(Kind::Namespace), false),
            (Action::Watch(Kind::Pod), false),
        ] {
            assert_eq!(authorize(&operator, action), Ok(()), "{action}");
            assert_eq!(authorize(&viewer, action).is_ok(), action.is_read(), "{action}");
            assert_eq!(authorize(&node, action).is_ok(), node_may, "{action}");
            for identity in &nobody {
                assert!(authorize(identity, action).is_err(), "{identity} {action}");
            }
        }
    }

    #[test]
    fn a_refusal_says_who_what_and_what_it_takes() {
        let node = Identity { user: "system:node:a".to_owned(), groups: ["system:nodes".to_owned()].into() };
        let denied = authorize(&node, Action::Apply(&Key::service("default", "web"))).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "user \"system:node:a\" (group system:nodes) may not apply service default/web: a node writes its own Node \
             alone, node a; it takes group system:masters (operators)"
        );
        let bob = Identity { user: "bob".to_owned(), ..Identity::default() };
        assert_eq!(
            authorize(&bob, Action::List(Kind::Service)).unwrap_err().to_string(),
            "user \"bob\" (no group) may not list services: it takes group system:masters (operators) or \
             tollgate:viewers (readers)"
        );
    }
}

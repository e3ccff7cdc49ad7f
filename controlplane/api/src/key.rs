//! How keys are made and written.

use std::fmt;

use crate::v1::{Key, Kind};

impl Key {
    /// Names one object. A namespace given for a kind that has none is dropped.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let namespace = if kind.is_namespaced() { namespace.into() } else { String::new() };
        Key { kind: kind.into(), namespace, name: name.into() }
    }

    /// A Service.
    pub fn service(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Key::new(Kind::Service, namespace, name)
    }

    /// An EndpointSlice.
    pub fn endpoint_slice(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Key::new(Kind::EndpointSlice, namespace, name)
    }

    /// A Pod.
    pub fn pod(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Key::new(Kind::Pod, namespace, name)
    }

    /// A Node.
    pub fn node(name: impl Into<String>) -> Self {
        Key::new(Kind::Node, "", name)
    }

    /// A Namespace.
    pub fn namespace(name: impl Into<String>) -> Self {
        Key::new(Kind::Namespace, "", name)
    }
}

/// `service default/web`, `node edge-1`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind())?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_kind_and_name() {
        assert_eq!(Key::service("default", "web").to_string(), "service default/web");
        assert_eq!(Key::new(Kind::Node, "ignored", "edge-1").to_string(), "node edge-1");
    }

    #[test]
    fn keys_are_ordered_by_namespace_then_name() {
        // As text, "a-b/x" would come before "a/x".
        let mut keys = vec![Key::service("a-b", "x"), Key::service("a", "y"), Key::service("a", "x")];
        keys.sort();
        assert_eq!(keys, [Key::service("a", "x"), Key::service("a", "y"), Key::service("a-b", "x")]);
    }
}

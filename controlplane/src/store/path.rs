//! Where an object lies in the store: the paths that Kubernetes uses in etcd, odd ones included, so that people and
//! tools that know those find their way.

use tollgate_api::v1::{Key, Kind};

/// `/registry/services/specs/default/web`, `/registry/minions/edge-1`.
pub fn path_of(key: &Key) -> String {
    let prefix = prefix_of(key.kind());
    if key.kind().is_namespaced() {
        format!("{prefix}{}/{}", key.namespace, key.name)
    } else {
        format!("{prefix}{}", key.name)
    }
}

/// The key of the object at a path; `None` where it isn't one that [`path_of`] makes.
pub fn parse_path(path: &str) -> Option<Key> {
    let (kind, rest) = Kind::ALL.into_iter().find_map(|kind| Some((kind, path.strip_prefix(prefix_of(kind))?)))?;
    let (namespace, name) = if kind.is_namespaced() { rest.split_once('/')? } else { ("", rest) };
    let is_valid = !name.is_empty() && !name.contains('/') && kind.is_namespaced() != namespace.is_empty();
    is_valid.then(|| Key::new(kind, namespace, name))
}

fn prefix_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "/registry/services/specs/",
        Kind::EndpointSlice => "/registry/endpointslices/",
        Kind::Node => "/registry/minions/",
        Kind::Namespace => "/registry/namespaces/",
        Kind::Pod => "/registry/pods/",
        Kind::Unspecified => "/registry/unspecified/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_kubernetes_and_read_back() {
        for (key, path) in [
            (Key::service("default", "web"), "/registry/services/specs/default/web"),
            (Key::endpoint_slice("shop", "web-x7"), "/registry/endpointslices/shop/web-x7"),
            (Key::node("edge-1"), "/registry/minions/edge-1"),
            (Key::namespace("shop"), "/registry/namespaces/shop"),
            (Key::pod("shop", "web-0"), "/registry/pods/shop/web-0"),
        ] {
            assert_eq!(path_of(&key), path);
            assert_eq!(parse_path(path), Some(key), "{path}");
        }
    }

    #[test]
    fn other_paths_are_no_objects() {
        for path in
            ["", "/registry/minions/", "/registry/minions/a/b", "/registry/pods/web", "/registry/pods//web", "x"]
        {
            assert_eq!(parse_path(path), None, "{path}");
        }
    }
}

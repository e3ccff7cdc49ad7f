//! The names of the kinds, as manifests and people write them.

use std::fmt;
use std::str::FromStr;

use crate::v1::Kind;

/// A word that names no kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKind {
    /// The word as it was given.
    pub given: String,
}

impl std::error::Error for UnknownKind {}

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.plural()).collect();
        write!(f, "unknown kind {:?}; known are {}", self.given, known.join(", "))
    }
}

impl Kind {
    /// Every kind of object, in the order of the contract.
    pub const ALL: [Kind; 5] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::Namespace, Kind::Pod];

    /// `kind` in a manifest: `EndpointSlice`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Unspecified => "Unspecified",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
        }
    }

    /// `apiVersion` in a manifest: `discovery.k8s.io/v1`.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            _ => "v1",
        }
    }

    /// As people and output write one of them: `endpointslice`.
    pub fn singular(self) -> &'static str {
        match self {
            Kind::Unspecified => "unspecified",
            Kind::Service => "service",
            Kind::EndpointSlice => "endpointslice",
            Kind::Node => "node",
            Kind::Namespace => "namespace",
            Kind::Pod => "pod",
        }
    }

    /// As people and output write several of them: `endpointslices`.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Unspecified => "unspecified",
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::Node => "nodes",
            Kind::Namespace => "namespaces",
            Kind::Pod => "pods",
        }
    }

    /// What people type instead: `svc`.
    pub fn short_name(self) -> &'static str {
        match self {
            Kind::Unspecified => "unspecified",
            Kind::Service => "svc",
            Kind::EndpointSlice => "eps",
            Kind::Node => "no",
            Kind::Namespace => "ns",
            Kind::Pod => "po",
        }
    }

    /// Whether objects of this kind lie in a namespace.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Kind::Service | Kind::EndpointSlice | Kind::Pod)
    }

    /// The kind that a manifest's `apiVersion` and `kind` name, where it is one that the contract has.
    pub fn of_manifest(api_version: &str, kind: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|known| known.name() == kind && known.api_version() == api_version)
    }
}

/// Reads a kind as people type it: name, singular, plural or short name, in any case.
impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let word = given.to_ascii_lowercase();
        Kind::ALL
            .into_iter()
            .find(|kind| [kind.singular(), kind.plural(), kind.short_name()].contains(&word.as_str()))
            .ok_or_else(|| UnknownKind { given: given.to_owned() })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.singular())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_by_each_of_its_names() {
        for kind in Kind::ALL {
            for word in [kind.name(), kind.singular(), kind.plural(), kind.short_name()] {
                assert_eq!(word.parse(), Ok(kind), "{word}");
            }
            assert_eq!(Kind::of_manifest(kind.api_version(), kind.name()), Some(kind), "{kind}");
        }
    }

    #[test]
    fn unknown_kind_names_itself_and_the_known_ones() {
        let error = "deploy".parse::<Kind>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown kind \"deploy\"; known are services, endpointslices, nodes, namespaces, pods"
        );
        assert_eq!("unspecified".parse::<Kind>().unwrap_err().given, "unspecified");
        assert_eq!(Kind::of_manifest("apps/v1", "Service"), None);
    }
}

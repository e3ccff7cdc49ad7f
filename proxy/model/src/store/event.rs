//! What a source tells the store.

use crate::endpoint::EndpointSlice;
use crate::name::NamespacedName;
use crate::node::{Node, NodeAddresses};
use crate::object::{InvalidObject, Kind};
use crate::service::Service;

/// What a source tells the store. Each kind has a list of its own: `Init(kind)`, its objects, `InitDone(kind)`, then changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A complete list of the kind begins. Until its end, what the store held of the kind goes on being true.
    Init(Kind),
    /// The object exists, like this.
    Apply(Object),
    /// The object does not exist. Nodes and NodeAddresses have no namespace; of the latter there is one, whatever its name.
    Delete(Kind, NamespacedName),
    /// The object exists, but does not validate. It acts as if it were deleted, with a warning: it has no frontends and no
    /// endpoints, since what it once was may be just what its owner wanted to be rid of.
    Invalid(InvalidObject),
    /// The list of the kind is complete. What it did not have does not exist.
    InitDone(Kind),
}

/// One object, of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A Node, this or another.
    Node(Node),
    /// The addresses on this node's interfaces.
    NodeAddresses(NodeAddresses),
}

impl Object {
    /// The object's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::NodeAddresses(_) => Kind::NodeAddresses,
        }
    }
}

/// What a source makes of an object as it came: `Service::try_from(&object).into()`.
impl<T: Into<Object>> From<Result<T, InvalidObject>> for Event {
    fn from(read: Result<T, InvalidObject>) -> Self {
        match read {
            Ok(object) => Self::Apply(object.into()),
            Err(error) => Self::Invalid(error),
        }
    }
}

impl From<Service> for Object {
    fn from(service: Service) -> Self {
        Self::Service(service)
    }
}

impl From<EndpointSlice> for Object {
    fn from(slice: EndpointSlice) -> Self {
        Self::EndpointSlice(slice)
    }
}

impl From<Node> for Object {
    fn from(node: Node) -> Self {
        Self::Node(node)
    }
}

impl From<NodeAddresses> for Object {
    fn from(addresses: NodeAddresses) -> Self {
        Self::NodeAddresses(addresses)
    }
}

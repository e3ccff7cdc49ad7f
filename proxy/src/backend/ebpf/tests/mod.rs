//! The plan, and what a lookup finds while its changes are written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tollgate_ebpf_abi::{
    Address, AddressPort, EndpointValue, ServiceKey, ServiceValue, address_flags, pool, service_flags,
};
use tollgate_model::diff::{Change, diff};
use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{IpFamily, NamespacedName, Protocol, ServicePortName};
use tollgate_model::service::{SessionAffinity, TrafficPolicy};
use tollgate_model::snapshot::{EndpointSets, ServicePort, Snapshot, SourceRanges};

use super::object::{Changes, Objects, Step, service_key};
use super::plan::Plan;
use super::slot::REST;
use crate::backend::NodeConfig;

mod cases;

/// Names that there may be; those with an odd number are UDP.
const NAMES: usize = 4;
/// Addresses that frontends may have.
const VIPS: u8 = 4;
/// Endpoints that there may be, in each family.
const ENDPOINTS: u8 = 6;

/// A Service port that may be wanted: sets are bits.
#[derive(Clone, Debug)]
struct Spec {
    vip: u8,
    external: Option<u8>,
    node_port: bool,
    cluster: u8,
    local: u8,
    serving: u8,
    is_local: bool,
    affinity: bool,
    ranges: bool,
}

fn spec() -> impl Strategy<Value = Spec> {
    let sets = (0..1_u8 << ENDPOINTS, 0..1_u8 << ENDPOINTS, 0..1_u8 << ENDPOINTS);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (0..VIPS, prop::option::of(0..VIPS), sets, flags).prop_map(|(vip, external, sets, flags)| Spec {
        vip,
        external,
        cluster: sets.0,
        local: sets.0 & sets.1,
        serving: sets.0 | sets.2,
        node_port: flags.0,
        is_local: flags.1,
        affinity: flags.2,
        ranges: flags.3,
    })
}

/// What is wanted at one moment, and how long after the moment before.
#[derive(Clone, Debug)]
struct Moment {
    specs: Vec<Option<Spec>>,
    node_ports_answer: bool,
    pause: Duration,
    restarts: bool,
}

fn moment() -> impl Strategy<Value = Moment> {
    let pauses = prop::sample::select(vec![0, 1, 400, 999, 1000, 3000]);
    let specs = prop::collection::vec(prop::option::weighted(0.8, spec()), NAMES);
    (specs, any::<bool>(), pauses, prop::bool::weighted(0.1)).prop_map(|(specs, node_ports_answer, pause, restarts)| {
        Moment { specs, node_ports_answer, pause: Duration::from_millis(pause), restarts }
    })
}

fn vip(number: u8, family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => [10, 96, 0, number].into(),
        IpFamily::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()].into(),
    }
}

fn pod(number: u8, family: IpFamily) -> Endpoint {
    let ip = match family {
        IpFamily::V4 => [10, 244, 0, number].into(),
        IpFamily::V6 => [0xfd00, 0x244, 0, 0, 0, 0, 0, number.into()].into(),
    };
    Endpoint { ip, port: 8080, is_local: false }
}

fn set(bits: u8, family: IpFamily) -> Arc<[Endpoint]> {
    (0..ENDPOINTS).filter(|number| bits & (1 << number) != 0).map(|number| pod(number, family)).collect()
}

fn name(number: usize) -> ServicePortName {
    let protocol = if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    ServicePortName { service: NamespacedName::new("default", format!("s{number}")), port: "".into(), protocol }
}

impl Moment {
    fn snapshot(&self) -> Snapshot {
        let mut taken = BTreeSet::new();
        let wanted = self.specs.iter().enumerate().filter_map(|(number, spec)| Some((number, spec.as_ref()?)));
        let service_ports = wanted.map(|(number, spec)| {
            let name = name(number);
            let addresses =
                [(FrontendOrigin::ClusterIp, Some(spec.vip)), (FrontendOrigin::LoadBalancerIp, spec.external)];
            let mut frontends = Vec::new();
            for (family, (origin, address)) in
                IpFamily::ALL.into_iter().flat_map(|family| addresses.map(|address| (family, address)))
            {
                let Some(ip) = address.map(|number| vip(number, family)) else { continue };
                // Whoever comes first has it: names may exchange addresses from one moment to the next.
                if taken.insert((ip, name.protocol)) {
                    frontends.push(Frontend { ip, port: 80, protocol: name.protocol, origin });
                }
            }
            let sets = |family| EndpointSets {
                cluster: set(spec.cluster, family),
                local: set(spec.local, family),
                serving: set(spec.serving, family),
            };
            let timeout = Duration::from_secs(60);
            let policy = if spec.is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            let service_port = ServicePort {
                name: name.clone(),
                frontends,
                node_port: spec.node_port.then(|| 30_000 + u16::try_from(number).unwrap()),
                v4: sets(IpFamily::V4),
                v6: sets(IpFamily::V6),
                internal_traffic_policy: policy,
                external_traffic_policy: policy,
                session_affinity: if spec.affinity {
                    SessionAffinity::ClientIp { timeout }
                } else {
                    SessionAffinity::None
                },
                source_ranges: SourceRanges {
                    v4: spec.ranges.then(|| ["192.0.2.0/24".parse().unwrap()].into()),
                    v6: None,
                },
                health_check_node_port: None,
                ipvs_scheduler: None,
            };
            (name, Arc::new(service_port))
        });
        let service_ports = service_ports.collect();
        let node = IpFamily::ALL.into_iter().filter(|_| self.node_ports_answer).map(|family| vip(200, family));
        Snapshot { service_ports, node_port_addresses: Arc::new(node.collect()), ..Snapshot::default() }
    }
}

fn config() -> NodeConfig {
    NodeConfig { families: IpFamily::ALL.to_vec(), ..NodeConfig::default() }
}

/// The maps, as a program sees them.
#[derive(Debug, Default)]
struct Maps(Objects);

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    /// The address is kept.
    Kept,
    /// Nobody has the port.
    Unknown,
    /// No endpoint.
    Refused,
    /// One of these slots is taken.
    Value(ServiceValue),
}

impl Maps {
    /// Writes a step entry by entry, and looks after each.
    fn write(&mut self, changes: &Changes, mut look: impl FnMut(&Self)) {
        macro_rules! each {
            ($entries:expr, |$entry:ident| $write:expr) => {
                for $entry in $entries {
                    $write;
                    look(self);
                }
            };
        }
        for step in changes.steps() {
            match step {
                Step::PutSlots(all) => each!(all, |it| self.0.slots.insert(it.0, it.1)),
                Step::PutNames(all) => each!(all, |it| self.0.names.insert(it.0, it.1)),
                Step::PutMembers(all) => each!(all, |it| self.0.members.insert(it.0, it.1)),
                Step::PutServices(all) => each!(all, |it| self.0.services.insert(it.0, it.1)),
                Step::PutAddresses(all) => each!(all, |it| self.0.addresses.insert(it.0, it.1)),
                Step::DeleteAddresses(all) => each!(all, |it| self.0.addresses.remove(it)),
                Step::DeleteServices(all) => each!(all, |it| self.0.services.remove(it)),
                Step::DeleteMembers(all) => each!(all, |it| self.0.members.remove(it)),
                Step::DeleteNames(all) => each!(all, |it| self.0.names.remove(it)),
            }
        }
    }

    /// What a connection to an address finds in `SERVICES`.
    fn find(&self, ip: IpAddr, port: u16, protocol: Protocol) -> Found {
        let address = Address::from(ip);
        let Some(flags) = self.0.addresses.get(&address).map(|value| value.flags) else { return Found::Kept };
        let own = service_key(address, port, protocol);
        let node_port = ServiceKey::node_port(address, port.to_be(), protocol.number());
        let keys = [(own, address_flags::VIP), (node_port, address_flags::NODE_PORT)];
        let mut found = keys.iter().filter(|(_, flag)| flags & flag != 0);
        let value = found.find_map(|(key, _)| Some((key, self.0.services.get(key)?)));
        match value {
            None if flags & address_flags::REFUSE_UNKNOWN != 0 => Found::Unknown,
            None => Found::Kept,
            Some((key, value)) => {
                assert!(value.is_of(key));
                match value {
                    value if value.flags & service_flags::LEAVE_TO_PACKETS != 0 => Found::Kept,
                    value if value.slots == 0 => Found::Refused,
                    value => Found::Value(*value),
                }
            }
        }
    }

    /// The endpoints that a connection which found this may be given.
    fn endpoints(&self, value: &ServiceValue) -> BTreeSet<SocketAddr> {
        let slots = value.first_slot..value.first_slot + value.slots;
        let slot = |slot| -> EndpointValue { *self.0.slots.get(&slot).expect("the slot is written") };
        let mut ids = BTreeSet::new();
        let endpoints: BTreeSet<SocketAddr> = slots
            .map(slot)
            .map(|slot| {
                assert_eq!(slot.service_id, value.service_id, "another Service port's slot");
                assert!(slot.endpoint_id != 0 && ids.insert(slot.endpoint_id), "an id of two endpoints");
                AddressPort::new(slot.address, slot.port).into()
            })
            .collect();
        assert_eq!(endpoints.len(), value.slots as usize, "an endpoint has more than one slot");
        endpoints
    }
}

/// What a connection from this node should find, by the model's words alone.
#[derive(Clone, Debug, PartialEq)]
enum Expected {
    Kept,
    Refused,
    Spread(BTreeSet<SocketAddr>),
}

type Frontends = BTreeMap<(IpAddr, u16, Protocol), Expected>;

/// Every frontend and node port of a snapshot with what should become of it.
fn expected(snapshot: &Snapshot) -> Frontends {
    let mut all = BTreeMap::new();
    for service_port in snapshot.service_ports.values() {
        let protocol = service_port.name.protocol;
        let spread = |family, origin| {
            let sets = service_port.endpoints(family);
            let is_local = origin == Some(FrontendOrigin::ClusterIp)
                && service_port.internal_traffic_policy == TrafficPolicy::Local;
            let is_guarded = origin == Some(FrontendOrigin::LoadBalancerIp)
                && family == IpFamily::V4
                && service_port.source_ranges.v4.is_some();
            let set = if is_local { &sets.local } else { &sets.cluster };
            match set.is_empty() {
                _ if is_guarded => Expected::Kept,
                true if is_local && !sets.cluster.is_empty() => Expected::Kept,
                true => Expected::Refused,
                false => Expected::Spread(set.iter().map(|it| SocketAddr::new(it.ip, it.port)).collect()),
            }
        };
        for frontend in &service_port.frontends {
            let what = spread(frontend.family(), Some(frontend.origin));
            all.insert((frontend.ip, frontend.port, protocol), what);
        }
        for (port, ip) in service_port
            .node_port
            .into_iter()
            .flat_map(|port| snapshot.node_port_addresses.iter().map(move |ip| (port, *ip)))
        {
            let family = ip.into();
            let is_of_family = service_port.frontends.iter().any(|frontend| frontend.family() == family)
                || !service_port.endpoints(family).serving.is_empty();
            if is_of_family {
                all.insert((ip, port, protocol), spread(family, None));
            }
        }
    }
    all
}

/// Somebody who has looked a Service up, and has not yet read the slot.
#[derive(Debug)]
struct Reader {
    since: Duration,
    value: ServiceValue,
    may_find: BTreeSet<SocketAddr>,
}

/// The plan beside the maps that its changes are written to.
struct Running {
    plan: Plan,
    maps: Maps,
    snapshot: Snapshot,
    now: Duration,
    readers: Vec<Reader>,
}

impl Running {
    fn new() -> Self {
        let (plan, snapshot) = (Plan::new(&config()), Snapshot::default());
        // The first sync is a full one: it leaves what no change writes again.
        let mut maps = Maps::default();
        let first = maps.0.changes_to(&plan.objects());
        maps.write(&first, |_| {});
        Self { plan, maps, snapshot, now: Duration::ZERO, readers: Vec::new() }
    }

    fn go_to(&mut self, moment: &Moment) -> Changes {
        self.now += moment.pause;
        let after = moment.snapshot();
        let changes = if moment.restarts { self.restart(&after) } else { self.update(&after) };
        let now = self.now;
        self.readers.retain(|reader| now - reader.since < REST);
        let (was, is) = (expected(&self.snapshot), expected(&after));
        let may_find = [&self.snapshot, &after].map(|snapshot| {
            // An address that comes or goes may lead to what there is before, and to what there is after.
            let addresses = self.snapshot.node_port_addresses.union(&after.node_port_addresses).copied().collect();
            expected(&Snapshot { node_port_addresses: Arc::new(addresses), ..snapshot.clone() })
        });
        let mut readers = std::mem::take(&mut self.readers);
        self.maps.write(&changes, |maps| {
            for reader in &readers {
                let found = maps.endpoints(&reader.value);
                assert!(found.is_subset(&reader.may_find), "{found:?}: {reader:?}");
            }
            look(maps, [&was, &is], &may_find, now, &mut readers);
        });
        self.readers = readers;
        self.plan.committed(self.now);
        self.snapshot = after;
        // In the end, all is as it should be.
        let wanted = self.plan.objects();
        let left = self.maps.0.changes_to(&wanted);
        assert_eq!(left.len(), 0, "{left:?}");
        let probed = was.keys().chain(is.keys()).collect::<BTreeSet<_>>();
        for key in probed {
            let found = self.maps.find(key.0, key.1, key.2);
            match (is.get(key), found) {
                (Some(Expected::Kept), Found::Kept) | (Some(Expected::Refused), Found::Refused) => {}
                (Some(Expected::Spread(set)), Found::Value(value)) => assert_eq!(*set, self.maps.endpoints(&value)),
                (None, Found::Kept | Found::Unknown) => {}
                (expected, found) => panic!("{key:?}: {found:?} and not {expected:?}"),
            }
        }
        let sizes = self.plan.sizes();
        let Objects { slots, names, members, services, addresses } = &wanted;
        assert_eq!((names.len(), members.len(), services.len()), (sizes.names, sizes.members, sizes.services));
        assert!(addresses.len() <= sizes.addresses && slots.keys().all(|slot| (*slot as usize) < sizes.slots));
        changes
    }

    fn update(&mut self, after: &Snapshot) -> Changes {
        let before = self.snapshot.clone();
        let changes: Vec<_> = diff(&before.service_ports, &after.service_ports)
            .map(|change| match change {
                Change::Added(name, new) | Change::Changed(name, _, new) => (name, Some(new)),
                Change::Removed(name, _) => (name, None),
            })
            .collect();
        let (changes, refused) = self.plan.update(after, &changes, self.now);
        assert_eq!(refused, []);
        changes
    }

    /// A new process that takes over what the maps hold.
    fn restart(&mut self, after: &Snapshot) -> Changes {
        // It waits until nobody can be about to read what no entry leads to.
        self.readers.clear();
        self.plan = Plan::new(&config());
        let mut listed = self.maps.0.clone();
        self.plan.adopt(Arc::new(listed.clone()));
        let all: Vec<_> = after.service_ports.iter().map(|(name, wanted)| (name, Some(wanted.as_ref()))).collect();
        let (_, refused) = self.plan.update(after, &all, self.now);
        assert_eq!(refused, []);
        self.plan.forget_listed();
        let wanted = self.plan.objects();
        listed.slots.retain(|slot, _| wanted.slots.contains_key(slot));
        listed.changes_to(&wanted)
    }
}

/// Looks every frontend up that is there before or after.
fn look(
    maps: &Maps,
    is_expected: [&Frontends; 2],
    may_find: &[Frontends; 2],
    now: Duration,
    readers: &mut Vec<Reader>,
) {
    for key in may_find.iter().flat_map(BTreeMap::keys).collect::<BTreeSet<_>>() {
        let found = maps.find(key.0, key.1, key.2);
        if let Found::Value(value) = found {
            let sets = may_find.iter().filter_map(|side| match side.get(key) {
                Some(Expected::Spread(set)) => Some(set),
                _ => None,
            });
            let may_find: BTreeSet<_> = sets.flatten().copied().collect();
            let endpoints = maps.endpoints(&value);
            assert!(endpoints.is_subset(&may_find), "{key:?}: {endpoints:?} of {may_find:?}");
            if !readers.iter().any(|reader| reader.value == value) {
                readers.push(Reader { since: now, value, may_find: endpoints });
            }
        } else if is_expected.iter().all(|side| matches!(side.get(key), Some(Expected::Spread(_)))) {
            panic!("{key:?} has endpoints before and after, and meanwhile is {found:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every lookup at every write finds endpoints of its own Service port, if there are any before and after.
    #[test]
    fn no_lookup_meets_a_gap_or_another_service(moments in prop::collection::vec(moment(), 1..10)) {
        let mut running = Running::new();
        for moment in &moments {
            running.go_to(moment);
        }
    }

    /// A process that starts with what is in the maps writes nothing.
    #[test]
    fn a_restart_writes_nothing(moments in prop::collection::vec(moment(), 1..6)) {
        let mut running = Running::new();
        for moment in &moments {
            running.go_to(moment);
        }
        let again = Moment { restarts: true, ..moments[moments.len() - 1].clone() };
        let changes = running.go_to(&again);
        prop_assert_eq!(changes.len(), 0, "{:?}", changes);
    }
}

fn cluster(value: &ServiceValue) -> bool {
    value.flags & pool::MASK == pool::CLUSTER
}

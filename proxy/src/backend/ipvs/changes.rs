//! What differs between a plan and the kernel, in an order in which every state on the way is harmless. Pure.
//!
//! ```text
//! before    members of sets: what refuses, drops or guards comes; frontends that are served no more go
//! adds      virtual services and their destinations come; routes come
//! after     frontends that are served come, and what refused or dropped them goes; marks and addresses
//! removals  destinations go, virtual services go, routes go
//! ```
//!
//! A destination that goes does not take its connections with it: it gets the weight 0, and is deleted when it has none any
//! more, which a full sync sees. What is there with the weight 0 and not wanted is such a one, whoever gave it that: so
//! it is known again after a restart. The same holds for virtual services that are wanted no more, and their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tollgate_model::name::Protocol;

use super::object::{Element, ElementValue, Route, ServiceChange, ServiceKey, ServiceSpec, ServiceStep, SetName};
use super::plan::{Plan, Touched};

/// What the kernel holds of ours in one family, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) services: BTreeMap<ServiceKey, AppliedService>,
    pub(crate) elements: BTreeMap<Element, ElementValue>,
    pub(crate) routes: BTreeSet<Route>,
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AppliedService {
    /// `None`: it is not as this program makes one.
    pub(crate) spec: Option<ServiceSpec>,
    pub(crate) destinations: BTreeMap<SocketAddr, AppliedDestination>,
}

/// A destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AppliedDestination {
    /// 0: it gets no new connections.
    pub(crate) weight: u32,
    /// Whether it was seen to have no connections, after it got the weight 0.
    pub(crate) is_idle: bool,
}

/// What is to be done in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) before: Vec<(Element, Option<ElementValue>)>,
    pub(crate) adds: Vec<ServiceStep>,
    pub(crate) new_routes: Vec<Route>,
    pub(crate) after: Vec<(Element, Option<ElementValue>)>,
    pub(crate) removals: Vec<ServiceStep>,
    pub(crate) old_routes: Vec<Route>,
}

impl Steps {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        let Self { before, adds, new_routes, after, removals, old_routes } = self;
        before.len() + adds.len() + new_routes.len() + after.len() + removals.len() + old_routes.len()
    }

    /// A line for each that nobody expects of a kernel that was left as it was wanted: connections end, and what was there
    /// for them goes.
    pub(crate) fn unexpected(&self) -> impl Iterator<Item = String> + '_ {
        let elements = self.before.iter().chain(&self.after).filter_map(|(element, value)| match value {
            Some(_) => Some(format!("set {element} was missing or altered")),
            None if element.set == SetName::Vips => None,
            None => Some(format!("set {element} was not wanted")),
        });
        let is_drift = |step: &&ServiceStep| matches!(step.change, ServiceChange::SetDestination(..));
        let services = self.adds.iter().chain(self.removals.iter().filter(is_drift)).map(ToString::to_string);
        let routes = self.new_routes.iter().map(|route| format!("the route for {route} was missing"));
        elements.chain(services).chain(routes)
    }
}

/// The weight of every destination that gets new connections.
pub(crate) const WEIGHT: u32 = 1;

/// What makes of the kernel what the plan says, as far as was touched.
pub(crate) fn steps(plan: &Plan, applied: &Applied, touched: &Touched) -> Steps {
    let mut steps = Steps::default();
    let mut remaining = Remaining { applied, goes: BTreeSet::new() };
    for key in &touched.services {
        if service(plan, applied, *key, &mut steps) {
            remaining.goes.insert(*key);
        }
    }
    let own = touched.elements.iter().filter(|element| element.set != SetName::Vips);
    for element in own {
        self::element(element, plan.element(element).cloned(), applied, &mut steps);
    }
    let keys = touched.services.iter().filter_map(|key| key.ip());
    let mut addresses: BTreeSet<IpAddr> = touched.addresses.iter().copied().chain(keys).collect();
    let routes = applied.routes.iter().filter(|route| touched.routes && is_host(route));
    addresses.extend(routes.map(|route| route.net.addr()));
    for ip in addresses {
        address(plan, &remaining, ip, &mut steps);
    }
    // What serves comes before what refuses goes.
    let (comes, mut goes): (Vec<_>, Vec<_>) = steps.after.drain(..).partition(|(_, value)| value.is_some());
    goes.reverse();
    steps.after = comes.into_iter().chain(goes).collect();
    for cidr in plan.style().service_cidrs() {
        net(plan, applied, *cidr, true, &mut steps);
    }
    steps
}

/// What is there besides what is wanted: touched as well, when everything is compared.
pub(crate) fn everything(plan: &Plan, applied: &Applied) -> Touched {
    let mut touched = plan.all();
    touched.services.extend(applied.services.keys());
    touched.elements.extend(applied.elements.keys().cloned());
    touched.addresses.extend(applied.elements.keys().map(|element| element.ip));
    touched.addresses.extend(applied.routes.iter().filter(|route| is_host(route)).map(|route| route.net.addr()));
    touched
}

/// Routes that nothing of this plan can have: of Service CIDRs that were another configuration's.
pub(crate) fn strange_routes(plan: &Plan, applied: &Applied) -> Vec<Route> {
    let is_strange = |route: &&Route| !is_host(route) && !plan.style().service_cidrs().contains(&route.net);
    applied.routes.iter().filter(is_strange).copied().collect()
}

fn is_host(route: &Route) -> bool {
    route.net.prefix_len() == route.net.max_prefix_len()
}

/// Virtual services that will be there.
struct Remaining<'a> {
    applied: &'a Applied,
    goes: BTreeSet<ServiceKey>,
}

impl Remaining<'_> {
    fn has_at(&self, ip: IpAddr) -> bool {
        let first = ServiceKey::Address { ip, protocol: Protocol::Tcp, port: 0 };
        let mut there = self.applied.services.range(first..).map(|(key, _)| key);
        there.by_ref().take_while(|key| key.ip() == Some(ip)).any(|key| !self.goes.contains(key))
    }
}

/// Returns whether it goes.
fn service(plan: &Plan, applied: &Applied, key: ServiceKey, steps: &mut Steps) -> bool {
    let (wanted, there) = (plan.service(key), applied.services.get(&key));
    let mut add = |change| steps.adds.push(ServiceStep { key, change });
    if let Some(wanted) = wanted {
        match there {
            None => add(ServiceChange::Add(wanted.spec)),
            Some(there) if there.spec != Some(wanted.spec) => add(ServiceChange::Set(wanted.spec)),
            Some(_) => {}
        }
        for endpoint in wanted.pool.iter() {
            let to = SocketAddr::new(endpoint.ip, endpoint.port);
            match there.and_then(|there| there.destinations.get(&to)) {
                None => add(ServiceChange::AddDestination(to, WEIGHT)),
                Some(destination) if destination.weight != WEIGHT => add(ServiceChange::SetDestination(to, WEIGHT)),
                Some(_) => {}
            }
        }
    }
    let Some(there) = there else { return false };
    let mut is_empty = true;
    for (to, destination) in &there.destinations {
        if wanted.is_some_and(|wanted| wanted.has(*to)) {
            continue;
        }
        let keeps = match (wanted, key) {
            (Some(wanted), _) => wanted.keeps(*to),
            (None, ServiceKey::Address { protocol, .. }) => protocol != Protocol::Udp,
            // Whose it was is not known any more, nor what for.
            (None, ServiceKey::Mark(_)) => true,
        };
        let change = match destination.weight {
            0 if keeps && !destination.is_idle => None,
            1.. if keeps => Some(ServiceChange::SetDestination(*to, 0)),
            _ => Some(ServiceChange::DeleteDestination(*to)),
        };
        is_empty &= matches!(change, Some(ServiceChange::DeleteDestination(_)));
        steps.removals.extend(change.map(|change| ServiceStep { key, change }));
    }
    let goes = wanted.is_none() && is_empty;
    if goes {
        steps.removals.push(ServiceStep { key, change: ServiceChange::Delete });
    }
    goes
}

fn element(element: &Element, wanted: Option<ElementValue>, applied: &Applied, steps: &mut Steps) {
    let there = applied.elements.get(element);
    if there == wanted.as_ref() {
        return;
    }
    let comes = wanted.is_some();
    let is_first = match element.set {
        SetName::Reject | SetName::Drop | SetName::Masquerade | SetName::Guarded | SetName::Admit => comes,
        // Its traffic goes to the virtual service of its own meanwhile, or is dropped.
        SetName::Shortcut => false,
        SetName::Frontends => !comes,
        SetName::Vips => false,
    };
    let step = (element.clone(), wanted);
    if is_first { steps.before.push(step) } else { steps.after.push(step) }
}

/// The route of an address, and its membership among those where undefined ports are refused: for as long as a Service has
/// it, or connections through one.
fn address(plan: &Plan, remaining: &Remaining<'_>, ip: IpAddr, steps: &mut Steps) {
    let style = plan.style();
    let is_left = remaining.has_at(ip) && !plan.serves_at(ip) && !style.own_addresses.contains(&ip);
    let vip = Element { set: SetName::Vips, ip, port: None, source: None };
    let is_vip = plan.holds(ip) || is_left && !style.is_in_service_cidr(ip);
    element(&vip, is_vip.then(ElementValue::default), remaining.applied, steps);
    let net = IpNet::from(ip);
    let is_routed = (plan.holds(ip) || is_left) && !style.is_in_service_cidr(ip);
    self::net(plan, remaining.applied, net, is_routed, steps);
}

/// The routes of a net.
fn net(plan: &Plan, applied: &Applied, net: IpNet, is_wanted: bool, steps: &mut Steps) {
    // The one that is to stay, and one with the node's own address.
    let sources = [None].into_iter().chain(plan.style().source().map(Some)).filter(|_| is_wanted);
    let wanted: BTreeSet<_> = sources.map(|source| Route { net, source }).collect();
    let first = Route { net, source: None };
    let there: BTreeSet<_> = applied.routes.range(first..).take_while(|route| route.net == net).copied().collect();
    steps.new_routes.extend(wanted.difference(&there));
    steps.old_routes.extend(there.difference(&wanted));
}

impl Applied {
    /// After a change that the kernel took.
    pub(crate) fn apply_service(&mut self, step: &ServiceStep) {
        let ServiceStep { key, change } = step;
        match change {
            ServiceChange::Delete => drop(self.services.remove(key)),
            ServiceChange::Add(spec) | ServiceChange::Set(spec) => {
                let service = self.services.entry(*key);
                service.or_insert_with(|| AppliedService { spec: None, destinations: BTreeMap::new() }).spec =
                    Some(*spec);
            }
            ServiceChange::AddDestination(to, weight) | ServiceChange::SetDestination(to, weight) => {
                let destination = AppliedDestination { weight: *weight, is_idle: false };
                if let Some(service) = self.services.get_mut(key) {
                    service.destinations.insert(*to, destination);
                }
            }
            ServiceChange::DeleteDestination(to) => {
                if let Some(service) = self.services.get_mut(key) {
                    service.destinations.remove(to);
                }
            }
        }
    }

    /// After a change that the kernel took.
    pub(crate) fn apply_element(&mut self, element: &Element, value: Option<&ElementValue>) {
        match value {
            Some(value) => drop(self.elements.insert(element.clone(), value.clone())),
            None => drop(self.elements.remove(element)),
        }
    }
}

//! Service ports to what one family is to have in the kernel. Pure: it remembers what it was told, and does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tollgate_model::name::{Protocol, ServicePortName};
use tollgate_model::snapshot::{ServicePort, Snapshot};

use super::object::{Element, ElementValue, Scheduler, ServiceKey, SetName};
use super::service::{self, Objects, Wanted};
use super::style::{MARK_BASE, MARK_MASK, Style};

/// What one family is to have for the Service ports placed so far.
#[derive(Debug)]
pub(crate) struct Plan {
    style: Style,
    placed: BTreeMap<ServicePortName, Arc<ServicePort>>,
    marks: BTreeMap<ServicePortName, u32>,
    services: BTreeMap<ServiceKey, (Wanted, ServicePortName)>,
    /// With how many Service ports need each.
    elements: BTreeMap<Element, (ElementValue, usize)>,
    /// Marks that the kernel has, by frontend: who had one keeps it.
    found: BTreeMap<(IpAddr, Protocol, u16), u32>,
    /// Marks that a Service port has, or that a virtual service of the kernel had at the start.
    used: BTreeSet<u32>,
    /// The former of these.
    owned: BTreeSet<u32>,
    next_mark: u32,
}

/// Why a Service port can't be realised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Its frontend is another's.
    #[error("the frontend {0} is held by another Service port")]
    Frontend(ServiceKey),
    /// Its frontend is left alone.
    #[error("the frontend {0} is in --ipvs-exclude-cidrs")]
    Excluded(ServiceKey),
    /// There are too many.
    #[error("there are no more marks for virtual services")]
    Marks,
}

/// What a change is about. What it comes to is found by comparing with what the kernel holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) services: BTreeSet<ServiceKey>,
    pub(crate) elements: BTreeSet<Element>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Every route.
    pub(crate) routes: bool,
}

impl Plan {
    /// A plan without any Service port.
    pub(crate) fn new(style: Style) -> Self {
        Self {
            style,
            placed: BTreeMap::new(),
            marks: BTreeMap::new(),
            services: BTreeMap::new(),
            elements: BTreeMap::new(),
            found: BTreeMap::new(),
            used: BTreeSet::new(),
            owned: BTreeSet::new(),
            next_mark: 0,
        }
    }

    /// What it depends on besides the Service ports.
    pub(crate) fn style(&self) -> &Style {
        &self.style
    }

    /// Takes over the marks that the kernel has.
    pub(crate) fn adopt<'a>(
        &mut self,
        elements: impl Iterator<Item = (&'a Element, &'a ElementValue)>,
        services: impl Iterator<Item = &'a ServiceKey>,
    ) {
        self.used = services
            .filter_map(|key| match key {
                ServiceKey::Mark(mark) => Some(*mark),
                ServiceKey::Address { .. } => None,
            })
            .collect();
        let is_ours = |mark: &u32| mark & MARK_MASK == MARK_BASE;
        self.found = elements
            .filter_map(|(element, value)| {
                let (protocol, port) = element.port?;
                Some(((element.ip, protocol, port), value.mark.filter(is_ours)?))
            })
            .collect();
    }

    /// Places these Service ports as the snapshot has them, or removes them, and takes over what it says of the node. Returns
    /// what that is about, and those that are refused: they have nothing then.
    pub(crate) fn update(
        &mut self,
        desired: &Snapshot,
        names: impl IntoIterator<Item = ServicePortName>,
    ) -> (Touched, Vec<(ServicePortName, Refusal)>) {
        let style = self.style.with(desired);
        let mut names: BTreeMap<ServicePortName, Option<Arc<ServicePort>>> =
            names.into_iter().map(|name| (name.clone(), desired.service_ports.get(&name).cloned())).collect();
        if style != self.style {
            for (name, placed) in self.placed.iter().filter(|(_, placed)| service::depends_on_node(placed)) {
                names.entry(name.clone()).or_insert_with(|| Some(placed.clone()));
            }
        }
        self.place(style, names)
    }

    /// Removes a Service port that the kernel does not take.
    pub(crate) fn refuse(&mut self, name: &ServicePortName) -> Touched {
        self.place(self.style.clone(), BTreeMap::from([(name.clone(), None)])).0
    }

    fn place(
        &mut self,
        style: Style,
        names: BTreeMap<ServicePortName, Option<Arc<ServicePort>>>,
    ) -> (Touched, Vec<(ServicePortName, Refusal)>) {
        let mut touched = Touched::default();
        let old_style = std::mem::replace(&mut self.style, style);
        touched.routes = old_style.source() != self.style.source();
        touched.addresses.extend(old_style.own_addresses.symmetric_difference(&self.style.own_addresses));
        // All go before any comes, because a frontend may move from one to another.
        for name in names.keys() {
            if let Some(old) = self.placed.remove(name) {
                let objects = service::objects(&old, &old_style, self.marks.get(name).copied());
                self.take_out(name, &objects, &mut touched);
            }
        }
        for name in names.iter().filter(|(_, wanted)| wanted.is_none()).map(|(name, _)| name) {
            // Its turn comes again when all others have had theirs, so that no connection of today is there any more.
            if let Some(mark) = self.marks.remove(name) {
                self.used.remove(&mark);
                self.owned.remove(&mark);
            }
        }
        let mut refused = Vec::new();
        for (name, wanted) in names {
            let Some(wanted) = wanted else { continue };
            if let Err(refusal) = self.put_in(&wanted, &mut touched) {
                refused.push((name, refusal));
                continue;
            }
            self.placed.insert(name, wanted);
        }
        (touched, refused)
    }

    fn put_in(&mut self, service_port: &ServicePort, touched: &mut Touched) -> Result<(), Refusal> {
        let mark = self.mark(service_port)?;
        let objects = service::objects(service_port, &self.style, mark);
        for (key, wanted) in &objects.services {
            // An external IP may be an address of this node, with the port of a NodePort: it comes first.
            let is_free = |(held, _): &(Wanted, ServicePortName)| held.is_node_port != wanted.is_node_port;
            if !self.services.get(key).is_none_or(is_free) {
                return Err(Refusal::Frontend(*key));
            }
            if key.ip().is_some_and(|ip| self.style.excluded.iter().any(|range| range.contains(&ip))) {
                return Err(Refusal::Excluded(*key));
            }
        }
        touched.add(&objects);
        for (element, value) in objects.elements {
            let held = self.elements.entry(element).or_insert_with(|| (value.clone(), 0));
            held.0 = value;
            held.1 += 1;
        }
        for (key, wanted) in objects.services {
            if !(wanted.is_node_port && self.services.contains_key(&key)) {
                self.services.insert(key, (wanted, service_port.name.clone()));
            }
        }
        Ok(())
    }

    fn take_out(&mut self, name: &ServicePortName, objects: &Objects, touched: &mut Touched) {
        touched.add(objects);
        for key in objects.services.keys() {
            if self.owner(*key) == Some(name) {
                self.services.remove(key);
            }
        }
        for element in objects.elements.keys() {
            let Some((_, uses)) = self.elements.get_mut(element) else { continue };
            *uses -= 1;
            if *uses == 0 {
                self.elements.remove(element);
            }
        }
    }

    /// The mark of a Service port, if it needs one. It keeps the one that it has, also that which the kernel has found.
    fn mark(&mut self, service_port: &ServicePort) -> Result<Option<u32>, Refusal> {
        let name = &service_port.name;
        if let Some(mark) = self.marks.get(name) {
            return Ok(Some(*mark));
        }
        if !service::needs_mark(service_port, self.style.family) {
            return Ok(None);
        }
        let known = service::external_frontends(service_port, &self.style)
            .find_map(|(ip, port)| self.found.remove(&(ip, name.protocol, port)));
        let is_free = |mark: &u32| !self.owned.contains(mark);
        let mark = match known.filter(is_free) {
            Some(mark) => mark,
            None => self.fresh_mark()?,
        };
        self.used.insert(mark);
        self.owned.insert(mark);
        self.marks.insert(name.clone(), mark);
        Ok(Some(mark))
    }

    /// One that neither a Service port has, nor the connections that a virtual service of the kernel was left for.
    fn fresh_mark(&mut self) -> Result<u32, Refusal> {
        for _ in 0..=!MARK_MASK {
            self.next_mark = (self.next_mark + 1) & !MARK_MASK;
            let mark = MARK_BASE | self.next_mark;
            if !self.used.contains(&mark) {
                return Ok(mark);
            }
        }
        Err(Refusal::Marks)
    }

    /// Gives those that would have this scheduler another. Returns what that is about.
    pub(crate) fn do_without(&mut self, scheduler: Scheduler) -> Touched {
        let mut style = self.style.clone();
        style.missing.insert(scheduler);
        let has_it = |(wanted, _): &&(Wanted, ServicePortName)| wanted.spec.scheduler == scheduler;
        let names: BTreeSet<_> = self.services.values().filter(has_it).map(|(_, name)| name.clone()).collect();
        let placed = names.into_iter().map(|name| (name.clone(), self.placed.get(&name).cloned())).collect();
        self.place(style, placed).0
    }

    /// The virtual service that is wanted there.
    pub(crate) fn service(&self, key: ServiceKey) -> Option<&Wanted> {
        self.services.get(&key).map(|(wanted, _)| wanted)
    }

    /// Whose it is.
    pub(crate) fn owner(&self, key: ServiceKey) -> Option<&ServicePortName> {
        self.services.get(&key).map(|(_, name)| name)
    }

    /// What a member of a set is to say; `None` where it is not to be there.
    pub(crate) fn element(&self, element: &Element) -> Option<&ElementValue> {
        self.elements.get(element).map(|(value, _)| value)
    }

    /// Whether a Service has a virtual service at this address.
    pub(crate) fn serves_at(&self, ip: IpAddr) -> bool {
        let first = ServiceKey::Address { ip, protocol: Protocol::Tcp, port: 0 };
        self.services.range(first..).next().is_some_and(|(key, _)| key.ip() == Some(ip))
    }

    /// Whether a Service holds this address, and the node does not have it otherwise.
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        self.elements.contains_key(&Element { set: SetName::Vips, ip, port: None, source: None })
    }

    /// Everything.
    pub(crate) fn all(&self) -> Touched {
        let mut touched = Touched::default();
        touched.services.extend(self.services.keys());
        touched.elements.extend(self.elements.keys().cloned());
        touched.addresses.extend(self.services.keys().filter_map(|key| key.ip()));
        touched.addresses.extend(self.elements.keys().map(|element| element.ip));
        touched
    }

    /// Service ports whose annotation names no scheduler, with what it says.
    pub(crate) fn unknown_scheduler(service_port: &ServicePort) -> Option<&str> {
        service_port.ipvs_scheduler.as_deref().filter(|name| name.parse::<Scheduler>().is_err())
    }
}

impl Touched {
    fn add(&mut self, objects: &Objects) {
        self.services.extend(objects.services.keys());
        self.elements.extend(objects.elements.keys().cloned());
        self.addresses.extend(service::addresses(objects));
    }
}

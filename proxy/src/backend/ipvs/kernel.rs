//! The only place that speaks to the kernel: three netlink sockets, the commands of iptables, and a few switches.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::IpNet;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use tollgate_model::name::IpFamily;

use super::changes::{Applied, AppliedDestination, AppliedService};
use super::netlink::ipvs::{ListedDestination, ListedService, Timeouts};
use super::netlink::socket::{Messages, Refusal, Socket};
use super::netlink::{ipset, ipvs, route};
use super::object::{Element, ElementValue, Route, Scheduler, ServiceKey, ServiceStep, SetName};
use super::rules::{self, Listing};
use super::style::Style;
use crate::backend::iptables::kernel::{Error as CommandError, Kernel as Tables};
use crate::backend::iptables::transaction::Step;

/// The link that holds the addresses. A device's name has at most 15 characters.
pub(crate) const LINK: &str = "tollgate-ipvs";

/// As the kernel itself calls it (`/proc/sys/kernel/modprobe`).
const MODPROBE: &str = "/sbin/modprobe";
const MODPROBE_SETTING: &str = "/proc/sys/kernel/modprobe";
const IPVS_SWITCHES: &str = "/proc/sys/net/ipv4/vs";
const ARP_IGNORE: &str = "/proc/sys/net/ipv4/conf/all/arp_ignore";
const ARP_ANNOUNCE: &str = "/proc/sys/net/ipv4/conf/all/arp_announce";
/// Where the modules are known to be loaded, or built in.
const IPVS_LIST: &str = "/proc/thread-self/net/ip_vs";
const SETS: &str = "/sys/module/ip_set";
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const ENODEV: i32 = 19;

/// Switches of IPVS that it is needed with, and what for.
const SWITCHES: [(&str, &str, &str); 4] = [
    ("conntrack", "1", "connections are masqueraded, and told from each other, by connection tracking"),
    ("expire_nodest_conn", "1", "UDP flows leave an endpoint that is gone at once"),
    (
        "expire_quiescent_template",
        "1",
        "clients leave an endpoint that takes no new connections, session affinity or not",
    ),
    ("conn_reuse_mode", "1", "a client that uses a port again is given an endpoint that serves"),
];

/// IPVS, sets, links and rules of the network namespace that the opening thread was in.
#[derive(Debug)]
pub(crate) struct Kernel {
    generic: RefCell<Socket>,
    netfilter: RefCell<Socket>,
    route: RefCell<Socket>,
    /// The number of IPVS's messages; there is none while it is not loaded.
    ipvs: OnceCell<u16>,
}

/// Why the kernel did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// It could not be spoken to.
    #[error("cannot {what} over netlink")]
    Talk {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("the kernel refused to {what}: {cause}")]
    Refused {
        /// What was tried.
        what: String,
        /// What it says.
        cause: String,
    },
    /// It knows no virtual services.
    #[error(
        "the kernel module ip_vs is not loaded, and loading it failed ({0}); load it with `modprobe ip_vs` (it is in the kernel's \
         package, on some distributions in that of extra modules)"
    )]
    NoIpvs(String),
    /// It knows no sets.
    #[error("the kernel module ip_set is needed ({0}); load it with `modprobe ip_set`")]
    NoSets(String),
    /// A command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A switch could not be read or set.
    #[error("cannot set {} to {wanted}: {why}", path.display())]
    Switch {
        /// The switch.
        path: PathBuf,
        /// To what.
        wanted: &'static str,
        /// What for.
        why: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What the kernel lists of one family.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// With their destinations.
    pub(crate) services: Vec<(ListedService, Vec<ListedDestination>)>,
    pub(crate) elements: BTreeMap<Element, ElementValue>,
    pub(crate) routes: BTreeSet<Route>,
}

impl Kernel {
    /// Opens the sockets, in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let socket = |protocol| Socket::open(protocol).map(RefCell::new).map_err(Error::Open);
        Ok(Self {
            generic: socket(NETLINK_GENERIC)?,
            netfilter: socket(NETLINK_NETFILTER)?,
            route: socket(NETLINK_ROUTE)?,
            ipvs: OnceCell::new(),
        })
    }

    /// Loads what is needed and not loaded, as far as that can be done.
    pub(crate) fn ensure_modules(&self) -> Result<(), Error> {
        if self.ask_for_ipvs()?.is_none() {
            let said = modprobe("ip_vs");
            if self.ask_for_ipvs()?.is_none() {
                return Err(Error::NoIpvs(said));
            }
            tracing::info!(module = "ip_vs", "loaded");
        }
        if let Err(code) = self.ask_for_sets()? {
            let said = modprobe("ip_set");
            if self.ask_for_sets()?.is_err() {
                return Err(Error::NoSets(format!("{}; {said}", describe(code, None))));
            }
        }
        Ok(())
    }

    /// The number of IPVS's messages, if it is loaded. To ask for it would load it.
    fn ipvs(&self) -> Result<Option<u16>, Error> {
        if self.ipvs.get().is_none() && !Path::new(IPVS_LIST).exists() {
            return Ok(None);
        }
        self.ask_for_ipvs()
    }

    fn ask_for_ipvs(&self) -> Result<Option<u16>, Error> {
        if let Some(id) = self.ipvs.get() {
            return Ok(Some(*id));
        }
        let talk = |source| Error::Talk { what: "ask for IPVS", source };
        let answer = self.generic.borrow_mut().get(
            ipvs::GENL_ID_CTRL,
            ipvs::write_family_request,
            |id: &mut Option<u16>, body| *id = id.or_else(|| ipvs::read_family(body)),
        );
        let id = match answer.map_err(talk)? {
            Ok(id) => id,
            Err(ENOENT) => None,
            Err(code) => return Err(refused("ask for IPVS", code, None)),
        };
        Ok(id.map(|id| *self.ipvs.get_or_init(|| id)))
    }

    /// The names of all sets, if the kernel has them loaded.
    fn set_names(&self) -> Result<Vec<String>, Error> {
        if !Path::new(SETS).exists() {
            return Ok(Vec::new());
        }
        self.ask_for_sets()?.map_err(|code| refused("list the sets", code, None))
    }

    fn ask_for_sets(&self) -> Result<Result<Vec<String>, i32>, Error> {
        let talk = |source| Error::Talk { what: "list the sets", source };
        let listed = self.netfilter.borrow_mut().dump(ipset::LIST, ipset::write_sets_request, |names, body| {
            let names: &mut Vec<String> = names;
            names.extend(ipset::read_set(body).map(|set| set.name));
        });
        listed.map_err(talk)
    }

    /// Sees to it that IPVS works as it has to. Says what it has changed.
    pub(crate) fn ensure_switches(&self) -> Result<(), Error> {
        for (name, wanted, why) in SWITCHES {
            ensure_switch(&Path::new(IPVS_SWITCHES).join(name), wanted, why, |value| value == wanted)?;
        }
        Ok(())
    }

    /// Where an address of a Service is in a network that the node is on, sees to it that the node does not answer for it
    /// there: its owner does, and packets that others send there come as they should.
    pub(crate) fn ensure_no_arp(&self, vips: impl Iterator<Item = IpNet>) -> Result<(), Error> {
        let talk = |source| Error::Talk { what: "list the addresses", source };
        let request = route::write_addresses_request;
        let nets = self.route.borrow_mut().dump(route::RTM_GETADDR, request, |nets: &mut Vec<IpNet>, body| {
            nets.extend(route::read_address(body));
        });
        let nets = nets.map_err(talk)?.unwrap_or_default();
        let mut near = vips.filter(|vip| nets.iter().any(|net| net.contains(&vip.addr())));
        let Some(vip) = near.next() else { return Ok(()) };
        tracing::debug!(%vip, "in a network of this node's");
        let why = "a Service's address is in a network of this node's, and others must not be told that it is here";
        ensure_switch(Path::new(ARP_IGNORE), "1", why, |value| value.parse::<u32>().is_ok_and(|value| value > 0))?;
        ensure_switch(Path::new(ARP_ANNOUNCE), "2", why, |value| value == "2")
    }

    /// Sets the timeouts of connections, those that are not 0.
    pub(crate) fn set_timeouts(&self, timeouts: Timeouts) -> Result<(), Error> {
        let Some(id) = self.ipvs()?.filter(|_| timeouts != Timeouts::default()) else { return Ok(()) };
        let mut messages = Messages::default();
        ipvs::push_timeouts(&mut messages, id, timeouts);
        first_refusal("set the timeouts of IPVS", self.send_generic(&mut messages)?)
    }

    fn send_generic(&self, messages: &mut Messages) -> Result<Vec<Refusal>, Error> {
        self.generic
            .borrow_mut()
            .send(messages)
            .map_err(|source| Error::Talk { what: "change virtual services", source })
    }

    /// Does these steps, each by itself. Returns those that were refused, by their places, and why.
    pub(crate) fn change_services(&self, family: IpFamily, steps: &[ServiceStep]) -> Result<Vec<Refusal>, Error> {
        let Some(id) = self.ipvs()?.filter(|_| !steps.is_empty()) else { return Ok(Vec::new()) };
        let mut messages = Messages::default();
        steps.iter().for_each(|step| ipvs::push_step(&mut messages, id, family, step));
        self.send_generic(&mut messages)
    }

    /// Whether the scheduler can be had; loads its module where it is not loaded.
    pub(crate) fn describe_scheduler(scheduler: Scheduler) -> String {
        format!("the kernel has no scheduler {scheduler}; load it with `modprobe ip_vs_{scheduler}`")
    }

    /// Does these steps, each by itself.
    pub(crate) fn change_elements(
        &self,
        family: IpFamily,
        steps: &[(Element, Option<ElementValue>)],
    ) -> Result<(), Error> {
        let mut messages = Messages::default();
        for (element, value) in steps {
            ipset::push_element(&mut messages, family, element, value.as_ref());
        }
        let refusals = self.send_netfilter(&mut messages)?;
        let Some(Refusal { index, code, message }) = refusals.into_iter().next() else { return Ok(()) };
        let what = steps.get(index).map(|(element, _)| format!("change the set {element}")).unwrap_or_default();
        Err(refused(&what, code, message.as_deref()))
    }

    fn send_netfilter(&self, messages: &mut Messages) -> Result<Vec<Refusal>, Error> {
        self.netfilter.borrow_mut().send(messages).map_err(|source| Error::Talk { what: "change sets", source })
    }

    /// Makes the sets of a family that are missing.
    pub(crate) fn ensure_sets(&self, family: IpFamily) -> Result<(), Error> {
        let mut messages = Messages::default();
        SetName::ALL.into_iter().for_each(|set| ipset::push_create(&mut messages, family, set));
        first_refusal("make sets", self.send_netfilter(&mut messages)?)
    }

    /// Empties the sets of a family but these.
    pub(crate) fn flush_sets(&self, family: IpFamily, kept: &[SetName]) -> Result<(), Error> {
        let mut messages = Messages::default();
        for set in SetName::ALL.into_iter().filter(|set| !kept.contains(set)) {
            ipset::push_flush(&mut messages, family, &set.text(family));
        }
        let refusals = self.send_netfilter(&mut messages)?;
        first_refusal("empty sets", refusals.into_iter().filter(|refusal| refusal.code != ENOENT).collect())
    }

    /// Whether anything of ours is there. Rules are there only beside their sets.
    pub(crate) fn is_clean(&self) -> Result<bool, Error> {
        let sets = self.set_names()?;
        let is_ours =
            |name: &String| IpFamily::ALL.into_iter().any(|of| SetName::ALL.iter().any(|set| set.text(of) == *name));
        if sets.iter().any(is_ours) || self.link()?.is_some() {
            return Ok(false);
        }
        for family in IpFamily::ALL {
            if !self.list(family, |_| false)?.services.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Destroys the sets of a family.
    pub(crate) fn destroy_sets(&self, family: IpFamily) -> Result<(), Error> {
        let there = self.set_names()?;
        let ours = SetName::ALL.into_iter().map(|set| set.text(family)).filter(|name| there.contains(name));
        let mut messages = Messages::default();
        ours.for_each(|name| ipset::push_destroy(&mut messages, family, &name));
        first_refusal("destroy sets", self.send_netfilter(&mut messages)?)
    }

    /// Makes the link, where it is missing or down, and gives it its addresses. Returns its index.
    pub(crate) fn ensure_link(&self, families: impl Iterator<Item = IpFamily>) -> Result<u32, Error> {
        let index = match self.link()? {
            Some((index, true)) => index,
            _ => {
                let mut messages = Messages::default();
                route::push_link(&mut messages, LINK);
                let what = "make the link tollgate-ipvs (the kernel module dummy is needed)";
                first_refusal(what, self.send_route(&mut messages)?)?;
                let missing =
                    || refused("make the link tollgate-ipvs", ENODEV, Some("it is not there after it was made"));
                self.link()?.ok_or_else(missing)?.0
            }
        };
        let mut messages = Messages::default();
        families.for_each(|family| route::push_source(&mut messages, index, family));
        first_refusal("give the link tollgate-ipvs its addresses", self.send_route(&mut messages)?)?;
        Ok(index)
    }

    /// The link's index, if it is there, and whether it is up.
    pub(crate) fn link(&self) -> Result<Option<(u32, bool)>, Error> {
        let talk = |source| Error::Talk { what: "look for the link tollgate-ipvs", source };
        let answer = self.route.borrow_mut().get(
            route::RTM_GETLINK,
            |it| route::write_link_request(it, LINK),
            |found, body| *found = route::read_link(body),
        );
        match answer.map_err(talk)? {
            Ok(found) => Ok(found),
            Err(ENODEV) => Ok(None),
            Err(code) => Err(refused("look for the link tollgate-ipvs", code, None)),
        }
    }

    /// Deletes the link with its routes.
    pub(crate) fn delete_link(&self) -> Result<(), Error> {
        if self.link()?.is_none() {
            return Ok(());
        }
        let mut messages = Messages::default();
        route::push_link_deletion(&mut messages, LINK);
        first_refusal("delete the link tollgate-ipvs", self.send_route(&mut messages)?)
    }

    fn send_route(&self, messages: &mut Messages) -> Result<Vec<Refusal>, Error> {
        self.route
            .borrow_mut()
            .send(messages)
            .map_err(|source| Error::Talk { what: "change the link and its routes", source })
    }

    /// Adds routes, or deletes them. What is so already is no error.
    pub(crate) fn change_routes(&self, link: u32, routes: &[Route], is_wanted: bool) -> Result<(), Error> {
        const EEXIST: i32 = 17;
        let mut messages = Messages::default();
        routes.iter().for_each(|route| route::push_route(&mut messages, link, *route, is_wanted));
        let done = if is_wanted { [EEXIST, EEXIST] } else { [ESRCH, ENOENT] };
        let refusals = self.send_route(&mut messages)?;
        let Some(refusal) = refusals.into_iter().find(|refusal| !done.contains(&refusal.code)) else { return Ok(()) };
        let verb = if is_wanted { "add" } else { "delete" };
        let what = routes.get(refusal.index).map(|it| format!("{verb} the local route of {it}")).unwrap_or_default();
        Err(refused(&what, refusal.code, refusal.message.as_deref()))
    }

    /// All that is there of a family: what is ours, and those virtual services that are claimed.
    pub(crate) fn list(&self, family: IpFamily, is_claimed: impl Fn(ServiceKey) -> bool) -> Result<Listed, Error> {
        let mut listed = Listed::default();
        self.list_services(family, is_claimed, &mut listed)?;
        self.list_sets(family, &mut listed)?;
        if let Some((link, _)) = self.link()? {
            let talk = |source| Error::Talk { what: "list the routes", source };
            let request = |it: &mut _| route::write_routes_request(it, family);
            let each = |found: &mut BTreeSet<Route>, body: &[u8]| found.extend(route::read_route(body, link));
            let routes = self.route.borrow_mut().dump(route::RTM_GETROUTE, request, each).map_err(talk)?;
            listed.routes = routes.map_err(|code| refused("list the routes", code, None))?;
            listed.routes.retain(|route| IpFamily::from(route.net.addr()) == family);
        }
        Ok(listed)
    }

    fn list_services(
        &self,
        family: IpFamily,
        is_claimed: impl Fn(ServiceKey) -> bool,
        listed: &mut Listed,
    ) -> Result<(), Error> {
        let Some(id) = self.ipvs()? else { return Ok(()) };
        let talk = |source| Error::Talk { what: "list the virtual services", source };
        let each = |found: &mut Vec<ListedService>, body: &[u8]| found.extend(ipvs::read_service(body));
        let mut generic = self.generic.borrow_mut();
        let services = generic.dump(id, ipvs::write_services_request, each).map_err(talk)?;
        let services = services.map_err(|code| refused("list the virtual services", code, None))?;
        for service in services.into_iter().filter(|service| service.family == family) {
            if !service.is_ours && !is_claimed(service.key) {
                continue;
            }
            let request = |it: &mut _| ipvs::write_destinations_request(it, family, service.key);
            let each =
                |found: &mut Vec<ListedDestination>, body: &[u8]| found.extend(ipvs::read_destination(family, body));
            let destinations = generic.dump(id, request, each).map_err(talk)?;
            let destinations = destinations.map_err(|code| refused("list destinations", code, None))?;
            listed.services.push((service, destinations));
        }
        Ok(())
    }

    fn list_sets(&self, family: IpFamily, listed: &mut Listed) -> Result<(), Error> {
        let talk = |source| Error::Talk { what: "list a set", source };
        let there = self.set_names()?;
        for set in SetName::ALL.into_iter().filter(|set| there.contains(&set.text(family))) {
            let request = |it: &mut _| ipset::write_list_request(it, family, set);
            let each = |found: &mut Vec<(Element, ElementValue)>, body: &[u8]| {
                found.extend(ipset::read_elements(family, set, body).flatten());
            };
            let elements = self.netfilter.borrow_mut().dump(ipset::LIST, request, each).map_err(talk)?;
            let what = || format!("list the set {}", set.text(family));
            listed.elements.extend(elements.map_err(|code| refused(&what(), code, None))?);
        }
        Ok(())
    }
}

impl From<&Listed> for Applied {
    fn from(listed: &Listed) -> Self {
        let destination = |it: &ListedDestination| {
            (it.to, AppliedDestination { weight: it.weight, is_idle: it.weight == 0 && it.open == 0 })
        };
        let services = listed.services.iter().map(|(service, destinations)| {
            let destinations = destinations.iter().map(destination).collect();
            // One that is not ours becomes that when it is changed.
            (service.key, AppliedService { spec: service.spec.filter(|_| service.is_ours), destinations })
        });
        Self { services: services.collect(), elements: listed.elements.clone(), routes: listed.routes.clone() }
    }
}

/// The rules of one iptables variant.
#[derive(Debug)]
pub(crate) struct Rules(Tables);

impl Rules {
    /// Those of the variant that the node uses.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self(Tables::open_rules()?))
    }

    /// Those of every variant that may have something here.
    pub(crate) fn open_all() -> Vec<Self> {
        Tables::open_all_rules().into_iter().map(Self).collect()
    }

    /// Whether this is the same variant.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.0.variant() == other.0.variant()
    }

    /// Makes the rules what the style says. Returns a line for each thing that was not so.
    pub(crate) fn ensure(&self, style: &Style) -> Result<Vec<String>, Error> {
        let listing = self.0.tables(style.family)?;
        let (text, lines) = rules::changes(&style.chains(), &Listing::read(&listing));
        self.restore(style.family, text)?;
        Ok(lines)
    }

    /// Removes the rules of a family.
    pub(crate) fn remove(&self, family: IpFamily) -> Result<(), Error> {
        let listing = self.0.tables(family)?;
        let listing = Listing::read(&listing);
        if listing.is_empty() {
            return Ok(());
        }
        self.restore(family, rules::removal(&listing))
    }

    fn restore(&self, family: IpFamily, text: String) -> Result<(), Error> {
        if text.is_empty() {
            return Ok(());
        }
        Ok(self.0.run(&Step::Rules(family, vec![text]))?)
    }
}

fn ensure_switch(
    path: &Path,
    wanted: &'static str,
    why: &'static str,
    is_so: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    let failed = |source| Error::Switch { path: path.to_owned(), wanted, why, source };
    let value = match fs::read_to_string(path) {
        Ok(value) => value,
        // A kernel that does not have it does not need it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if is_so(value.trim()) {
        return Ok(());
    }
    fs::write(path, wanted).map_err(failed)?;
    tracing::info!(switch = %path.display(), was = value.trim(), now = wanted, why, "switched");
    Ok(())
}

/// What came of it, for an error.
fn modprobe(module: &str) -> String {
    let configured = fs::read_to_string(MODPROBE_SETTING).unwrap_or_default();
    let program = Some(configured.trim()).filter(|path| !path.is_empty()).unwrap_or(MODPROBE);
    match Command::new(program).arg(module).output() {
        Ok(output) => format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => format!("{program}: {error}"),
    }
}

fn first_refusal(what: &str, refusals: Vec<Refusal>) -> Result<(), Error> {
    match refusals.into_iter().next() {
        None => Ok(()),
        Some(Refusal { code, message, .. }) => Err(refused(what, code, message.as_deref())),
    }
}

fn refused(what: &str, code: i32, message: Option<&str>) -> Error {
    Error::Refused { what: what.to_owned(), cause: describe(code, message) }
}

/// An error number in words.
pub(crate) fn describe(code: i32, message: Option<&str>) -> String {
    /// ip_set's own numbers begin here (`IPSET_ERR_PRIVATE`).
    const IPSET: i32 = 4096;
    let words =
        if code < IPSET { io::Error::from_raw_os_error(code).to_string() } else { format!("error {code} of ip_set") };
    message.map_or(words.clone(), |message| format!("{words} ({message})"))
}

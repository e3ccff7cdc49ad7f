//! Addresses, the programs, and what is in the maps.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuHashMap};
use aya::programs::cgroup_sock_addr::CgroupSockAddrLinkId;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tollgate_ebpf_abi::{
    Address, AddressPort, AddressValue, AffinityKey, AffinityValue, CounterKey, EndpointValue, MemberKey, MemberValue,
    ServiceKey, ServiceValue, address_flags, counter, global, map, pool, program, protocol,
};

use crate::server;

/// What the build script found.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tollgate.o"));

/// The last part of every address: 10.96.0.N and fd00::N.
pub(crate) mod host {
    /// A ClusterIP.
    pub(crate) const CLUSTER_IP: u8 = 1;
    /// An external IP, which is this machine's as well.
    pub(crate) const EXTERNAL_IP: u8 = 2;
    /// A node address that answers NodePorts.
    pub(crate) const NODE: u8 = 3;
    /// A node address that doesn't.
    pub(crate) const OTHER_NODE: u8 = 4;
    /// Nothing to Services.
    pub(crate) const FOREIGN: u8 = 5;
    /// Endpoints are from here on.
    pub(crate) const ENDPOINT: u8 = 10;
}

/// Ports of the frontends.
pub(crate) mod port {
    /// Two endpoints.
    pub(crate) const SERVICE: u16 = 80;
    /// No endpoint.
    pub(crate) const EMPTY: u16 = 81;
    /// Packets decide.
    pub(crate) const LEFT: u16 = 82;
    /// TCP only.
    pub(crate) const TCP_ONLY: u16 = 83;
    /// Nobody's.
    pub(crate) const UNKNOWN: u16 = 99;
    /// A NodePort with two endpoints.
    pub(crate) const NODE_PORT: u16 = 30080;
    /// A NodePort of IPv4 alone, and of TCP.
    pub(crate) const NODE_PORT_V4: u16 = 30081;
    /// What endpoints listen on.
    pub(crate) const ENDPOINT: u16 = 8080;
}

/// Endpoints of every family, at which servers are.
pub(crate) const ENDPOINTS: u8 = 4;

/// The programs, attached for as long as it lives.
pub(crate) struct World {
    ebpf: Ebpf,
    next_slot: u32,
    links: Vec<(&'static str, CgroupSockAddrLinkId)>,
}

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Whether the programs choose the errno.
    pub(crate) has_set_retval: u32,
    /// The network namespace of the node.
    pub(crate) node_netns: u64,
    /// For how many Services more there must be room.
    pub(crate) services: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { has_set_retval: 1, node_netns: netns_cookie(), services: 0 }
    }
}

/// A Service port as a test wants it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Service {
    pub(crate) id: u32,
    pub(crate) flags: u32,
    pub(crate) affinity_seconds: u32,
}

/// An address of either family.
pub(crate) fn ip(is_v6: bool, host: u8) -> IpAddr {
    if is_v6 { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)]) } else { IpAddr::from([10, 96, 0, host]) }
}

/// The n-th endpoint.
pub(crate) fn endpoint(is_v6: bool, n: u8) -> SocketAddr {
    SocketAddr::new(ip(is_v6, host::ENDPOINT + n), port::ENDPOINT)
}

/// One that several tests look at and none changes.
static SHARED: Mutex<Option<World>> = Mutex::new(None);

/// The one for tests that change nothing in it.
pub(crate) fn shared() -> MappedWorld {
    let mut world = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    world.get_or_insert_with(|| World::load(Options::default()));
    MappedWorld(world)
}

/// The shared world, for as long as one test looks at it.
pub(crate) struct MappedWorld(MutexGuard<'static, Option<World>>);

impl Deref for MappedWorld {
    type Target = World;

    fn deref(&self) -> &World {
        self.0.as_ref().unwrap()
    }
}

impl DerefMut for MappedWorld {
    fn deref_mut(&mut self) -> &mut World {
        self.0.as_mut().unwrap()
    }
}

/// Why this process can't attach programs to a cgroup, if it can't.
pub(crate) fn missing_privilege() -> Option<String> {
    if let Err(error) = tollgate_lab::cgroup::of_the_lab() {
        return Some(format!("{error:#}"));
    }
    // Every map is made by it.
    let error = EbpfLoader::new().load(OBJECT).err()?;
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            return Some("loading eBPF programs is not permitted: run it as root".to_owned());
        }
        cause = error.source();
    }
    None
}

/// Addresses and servers, once for all tests.
pub(crate) fn prepare() {
    run("ip link set lo up");
    add_addresses();
    for is_v6 in [false, true] {
        (0..ENDPOINTS).for_each(|n| server::start(endpoint(is_v6, n)));
        // Where there must be somebody, so that it is seen where a connection goes that is left alone.
        let others = [
            (host::EXTERNAL_IP, port::LEFT),
            (host::EXTERNAL_IP, port::UNKNOWN),
            (host::NODE, port::UNKNOWN),
            (host::OTHER_NODE, port::NODE_PORT),
            (host::FOREIGN, port::SERVICE),
        ];
        others.into_iter().for_each(|(host, port)| server::start(SocketAddr::new(ip(is_v6, host), port)));
    }
}

/// All addresses, on the loopback device of the calling thread's network namespace. They are `nodad`: at once.
pub(crate) fn add_addresses() {
    let endpoints = (0..ENDPOINTS).map(|n| host::ENDPOINT + n);
    let hosts = [host::CLUSTER_IP, host::EXTERNAL_IP, host::NODE, host::OTHER_NODE, host::FOREIGN];
    for host in hosts.into_iter().chain(endpoints) {
        run(&format!("ip address add {}/32 dev lo", ip(false, host)));
        run(&format!("ip address add {}/128 dev lo nodad", ip(true, host)));
    }
}

pub(crate) fn run(command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The cookie of the calling thread's network namespace.
pub(crate) fn netns_cookie() -> u64 {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap();
    nix::sys::socket::getsockopt(&socket, NetnsCookie).unwrap()
}

#[derive(Clone, Copy, Debug)]
struct NetnsCookie;

impl nix::sys::socket::GetSockOpt for NetnsCookie {
    type Val = u64;

    fn get<F: std::os::fd::AsFd>(&self, fd: &F) -> nix::Result<u64> {
        let (mut value, mut length) = (0_u64, 8);
        // SAFETY: both pointers are to locals of the sizes that are said.
        let result = unsafe {
            nix::libc::getsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()),
                nix::libc::SOL_SOCKET,
                nix::libc::SO_NETNS_COOKIE,
                (&raw mut value).cast(),
                &raw mut length,
            )
        };
        nix::errno::Errno::result(result).map(|_| value)
    }
}

impl World {
    /// One of a test's own, with what every test wants in the maps. The shared one ends: both would translate.
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    /// The same, otherwise.
    pub(crate) fn with(options: Options) -> Self {
        SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
        Self::load(options)
    }

    fn load(options: Options) -> Self {
        let mut loader = EbpfLoader::new();
        loader
            .override_global(global::HAS_SET_RETVAL, &options.has_set_retval, true)
            .override_global(global::NODE_NETNS, &options.node_netns, true)
            // Small ones are made and freed at once.
            .map_max_entries(map::AFFINITY, 1024)
            .map_max_entries(map::FLOWS, 1024)
            .map_max_entries(map::REV_NAT, 1024)
            .map_max_entries(map::ADDRESSES, 64 + options.services)
            .map_max_entries(map::SERVICES, 256 + options.services)
            .map_max_entries(map::MEMBERS, 1024 + options.services);
        let mut ebpf = loader.load(OBJECT).unwrap();
        for name in program::ALL {
            let program: &mut CgroupSockAddr = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
        let mut world = Self { ebpf, next_slot: 0, links: Vec::new() };
        world.attach();
        world.fill();
        world
    }

    /// Lets the programs see this process's sockets.
    pub(crate) fn attach(&mut self) {
        let cgroup = File::open(tollgate_lab::cgroup::of_the_lab().unwrap()).unwrap();
        for name in program::ALL {
            // Links are always of several programs a hook, and take no flag (kernel/bpf/cgroup.c, `cgroup_bpf_link_attach`).
            let link = self.program(name).attach(&cgroup, CgroupAttachMode::Single).unwrap();
            self.links.push((name, link));
        }
    }

    /// Lets them see nothing.
    pub(crate) fn detach(&mut self) {
        for (name, link) in std::mem::take(&mut self.links) {
            self.program(name).detach(link).unwrap();
        }
    }

    /// One of the programs.
    pub(crate) fn program(&mut self, name: &str) -> &mut CgroupSockAddr {
        self.ebpf.program_mut(name).unwrap().try_into().unwrap()
    }

    fn fill(&mut self) {
        for is_v6 in [false, true] {
            let base = if is_v6 { 100 } else { 0 };
            self.address(ip(is_v6, host::CLUSTER_IP), address_flags::VIP | address_flags::REFUSE_UNKNOWN, base + 1);
            self.address(ip(is_v6, host::EXTERNAL_IP), address_flags::VIP, 0);
            self.address(ip(is_v6, host::NODE), address_flags::NODE_PORT, 0);
            let cluster_ip = |port| SocketAddr::new(ip(is_v6, host::CLUSTER_IP), port);
            let external = |port| SocketAddr::new(ip(is_v6, host::EXTERNAL_IP), port);
            let ends = [endpoint(is_v6, 0), endpoint(is_v6, 1)];
            let service = |id| Service { id: base + id, flags: pool::CLUSTER, ..Service::default() };
            for protocol in [protocol::TCP, protocol::UDP] {
                let plus = if protocol == protocol::UDP { 50 } else { 0 };
                self.service(cluster_ip(port::SERVICE), protocol, service(plus + 1), &ends);
                self.service(cluster_ip(port::EMPTY), protocol, service(plus + 2), &[]);
                let left = Service { flags: tollgate_ebpf_abi::service_flags::LEAVE_TO_PACKETS, ..service(plus + 3) };
                self.service(external(port::LEFT), protocol, left, &ends);
                self.service(external(port::SERVICE), protocol, service(plus + 4), &ends);
                self.node_port(is_v6, port::NODE_PORT, protocol, service(plus + 5), &ends);
            }
            if !is_v6 {
                self.node_port(is_v6, port::NODE_PORT_V4, protocol::TCP, service(7), &ends);
            }
            self.service(cluster_ip(port::TCP_ONLY), protocol::TCP, service(6), &ends);
        }
    }

    pub(crate) fn address(&mut self, ip: IpAddr, flags: u32, service_id: u32) {
        let mut map = HashMap::<_, Address, AddressValue>::try_from(self.map_mut(map::ADDRESSES)).unwrap();
        map.insert(Address::from(ip), AddressValue { flags, service_id }, 0).unwrap();
    }

    fn map_mut(&mut self, name: &str) -> &mut Map {
        self.ebpf.map_mut(name).unwrap()
    }

    /// Writes a Service port's endpoints and then its entry, as the daemon does.
    pub(crate) fn service(&mut self, at: SocketAddr, protocol: u8, service: Service, endpoints: &[SocketAddr]) {
        let frontend = AddressPort::from(at);
        self.put(ServiceKey::new(frontend.address, frontend.port, protocol), service, endpoints);
    }

    pub(crate) fn node_port(&mut self, is_v6: bool, port: u16, protocol: u8, service: Service, ends: &[SocketAddr]) {
        self.put(ServiceKey::node_port(ip(is_v6, 0).into(), port.to_be(), protocol), service, ends);
    }

    fn put(&mut self, key: ServiceKey, service: Service, endpoints: &[SocketAddr]) {
        let first_slot = self.next_slot;
        for end in endpoints {
            self.slot(self.next_slot, service.id, *end);
            self.next_slot += 1;
            self.member(service.id, *end, pool::CLUSTER);
        }
        let value = ServiceValue {
            service_id: service.id,
            first_slot,
            slots: u32::try_from(endpoints.len()).unwrap(),
            flags: service.flags,
            affinity_seconds: service.affinity_seconds,
            check: 0,
        };
        self.put_value(&key, value.sealed(&key));
    }

    /// One endpoint in a slot, and then the entry that leads to it, without a member.
    pub(crate) fn place(&mut self, key: &ServiceKey, service: Service, slot: u32, end: SocketAddr) {
        self.slot(slot, service.id, end);
        let Service { id: service_id, flags, affinity_seconds } = service;
        let value = ServiceValue { service_id, first_slot: slot, slots: 1, flags, affinity_seconds, check: 0 };
        self.put_value(key, value.sealed(key));
    }

    /// Removes an entry, if it is there.
    pub(crate) fn remove(&mut self, key: &ServiceKey) {
        let mut map = HashMap::<_, ServiceKey, ServiceValue>::try_from(self.map_mut(map::SERVICES)).unwrap();
        let _ = map.remove(key);
    }

    /// As it is, with whatever check it has.
    pub(crate) fn put_value(&mut self, key: &ServiceKey, value: ServiceValue) {
        let mut map = HashMap::<_, ServiceKey, ServiceValue>::try_from(self.map_mut(map::SERVICES)).unwrap();
        map.insert(key, value, 0).unwrap();
    }

    pub(crate) fn value(&mut self, key: &ServiceKey) -> ServiceValue {
        let map = HashMap::<_, ServiceKey, ServiceValue>::try_from(self.map_mut(map::SERVICES)).unwrap();
        map.get(key, 0).unwrap()
    }

    pub(crate) fn slot(&mut self, slot: u32, service_id: u32, end: SocketAddr) {
        let AddressPort { address, port, .. } = end.into();
        let value = EndpointValue { address, port, endpoint_id: id_of(end), service_id, ..EndpointValue::default() };
        Array::<_, EndpointValue>::try_from(self.map_mut(map::ENDPOINTS)).unwrap().set(slot, value, 0).unwrap();
    }

    /// Says in which sets an endpoint serves; in none, it is gone.
    pub(crate) fn member(&mut self, service_id: u32, end: SocketAddr, pools: u32) {
        let mut map = HashMap::<_, MemberKey, MemberValue>::try_from(self.map_mut(map::MEMBERS)).unwrap();
        let key = MemberKey { service_id, endpoint: end.into() };
        if pools == 0 {
            map.remove(&key).unwrap();
        } else {
            map.insert(key, MemberValue { pools, endpoint_id: id_of(end) }, 0).unwrap();
        }
    }

    pub(crate) fn affinity(&mut self) -> HashMap<&mut MapData, AffinityKey, AffinityValue> {
        HashMap::try_from(self.map_mut(map::AFFINITY)).unwrap()
    }

    /// What has been counted, over all CPUs.
    pub(crate) fn counters(&mut self) -> BTreeMap<CounterKey, u64> {
        let map = PerCpuHashMap::<_, CounterKey, u64>::try_from(self.map_mut(map::COUNTERS)).unwrap();
        map.iter().map(|entry| entry.unwrap()).map(|(key, values)| (key, values.iter().sum())).collect()
    }

    /// Connections that each endpoint of a Service port has been given.
    pub(crate) fn connections(&mut self, service_id: u32) -> BTreeMap<u32, u64> {
        let is_it = |key: &CounterKey| key.service_id == service_id && key.counter == counter::CONNECTIONS;
        self.counters().into_iter().filter(|(key, _)| is_it(key)).map(|(key, count)| (key.endpoint_id, count)).collect()
    }
}

/// The id under which an endpoint's connections are counted.
pub(crate) fn id_of(end: SocketAddr) -> u32 {
    match end.ip() {
        IpAddr::V4(ip) => u32::from(ip.octets()[3]),
        IpAddr::V6(ip) => u32::from(ip.octets()[15]),
    }
}

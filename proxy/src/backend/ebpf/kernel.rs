//! The maps, programs and links in the kernel: all that is read and written of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::CgroupSockAddr;
use aya::{Ebpf, EbpfLoader};
use tollgate_ebpf_abi::{
    Address, AddressValue, CounterKey, EndpointValue, MemberKey, MemberValue, ServiceKey, ServiceValue, SocketValue,
    global, map, program,
};
use tollgate_model::name::Protocol;

use super::bpf::{self, Map};
use super::object::{Changes, NAMES, NameValue, Objects, Step};
use super::place::{self, Cgroup, Pins};
use super::plan::Sizes;
use super::socket;

/// A map never has room for fewer entries than this.
const LEAST_ENTRIES: usize = 4096;

/// The hook of each program (`enum bpf_attach_type`), in the order in which they are attached: who asks what was dialled must know
/// it from the first connection on.
const HOOKS: [(&str, u32); 10] = [
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("connect4", 10),
    ("connect6", 11),
    ("bind4", 8),
    ("bind6", 9),
];
const _: () = assert!(HOOKS.len() == program::ALL.len());

/// What the kernel would not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks something.
    #[error(transparent)]
    Place(#[from] place::Error),
    /// bpf(2) is not to be had.
    #[error("this kernel or this process's rights do not allow bpf(2): {hint}")]
    Forbidden {
        /// What to do.
        hint: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("cannot {what} the map {map}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// Its name.
        map: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The programs could not be loaded.
    #[error("the kernel does not take Tollgate's programs (Linux 5.10 is needed, with CONFIG_CGROUP_BPF)")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program could not be loaded.
    #[error("the kernel does not take Tollgate's program {name}")]
    Program {
        /// Which.
        name: &'static str,
        /// What the verifier says.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A program could not be attached.
    #[error(
        "cannot attach the program {name} to the cgroup {cgroup} (EPERM: another program is attached there that does not allow \
         others beside it; see `bpftool cgroup show`)"
    )]
    Attach {
        /// Which.
        name: &'static str,
        /// Where.
        cgroup: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// What sockets dialled can't be told.
    #[error("cannot list the sockets that were translated (Linux 5.12 with CONFIG_DEBUG_INFO_BTF is needed for it)")]
    Sockets(#[source] io::Error),
    /// A pin could not be made, opened or removed.
    #[error("cannot {what} the pin {path}")]
    Pin {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// The maps that the daemon reads and writes.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) addresses: Map<Address, AddressValue>,
    pub(crate) services: Map<ServiceKey, ServiceValue>,
    pub(crate) endpoints: Map<u32, EndpointValue>,
    pub(crate) members: Map<MemberKey, MemberValue>,
    pub(crate) names: Map<u32, NameValue>,
    pub(crate) counters: Map<CounterKey, u64>,
    /// Those that only the programs read and write.
    programs_own: Vec<(&'static str, OwnedFd)>,
}

/// The maps that only the programs read and write.
const PROGRAMS_OWN: [&str; 4] = [map::AFFINITY, map::SOCKETS, map::FLOWS, map::REV_NAT];

/// How many entries each map has room for, by its name.
type Room = BTreeMap<&'static str, u32>;

/// A program's place.
#[derive(Debug)]
struct Link {
    fd: OwnedFd,
    /// What runs there.
    program: u32,
}

/// The kernel's side of the backend.
#[derive(Debug)]
pub(crate) struct Kernel {
    pins: Pins,
    cgroup: Cgroup,
    /// The ELF object with the programs.
    object: &'static [u8],
    globals: Globals,
    maps: Option<Maps>,
    /// Empty until this process has loaded its programs.
    links: BTreeMap<&'static str, Link>,
    /// Read with the maps, and not yet in the kernel.
    loaded: Option<Ebpf>,
    iterator: Option<socket::Iterator>,
}

/// The programs' constants.
#[derive(Clone, Copy, Debug)]
struct Globals {
    node_netns: u64,
    has_set_retval: u32,
}

impl Kernel {
    /// Looks for all that is needed. Changes nothing but that it may mount a bpf file system.
    pub(crate) fn open(object: &'static [u8], cgroup: Option<&Path>, root: &Path) -> Result<Self, Error> {
        let cgroup = Cgroup::open(cgroup)?;
        // One that nobody sees, to find out whether there is any.
        Map::<u32, u32>::create_hash("tollgate_probe", 1).map_err(forbidden)?;
        let pins = Pins::new(root);
        pins.ensure()?;
        let has_set_retval = bpf::has_set_retval();
        if !has_set_retval {
            tracing::warn!(
                "this kernel is older than Linux 5.18: connections that are refused see EPERM, not ECONNREFUSED"
            );
        }
        let node_netns = super::netns::own_cookie().unwrap_or_else(|error| {
            tracing::warn!(%error, "this kernel is older than Linux 5.14: processes of the node are not kept off node ports");
            0
        });
        let globals = Globals { node_netns, has_set_retval: has_set_retval.into() };
        Ok(Self { pins, cgroup, object, globals, maps: None, links: BTreeMap::new(), loaded: None, iterator: None })
    }

    /// What the maps hold; `None` where there are none. Opens those that a process before this one has left.
    pub(crate) fn list(&mut self) -> Result<Option<Objects>, Error> {
        if self.maps.is_none() {
            self.finish_exchange()?;
            self.maps = match Maps::open(&self.pins.maps()) {
                Ok(maps) => maps,
                Err(error) => {
                    tracing::warn!(error = %crate::sync::chain(&error), "the maps that are pinned can't be used, and are made anew");
                    None
                }
            };
        }
        self.maps.as_ref().map(Maps::list).transpose()
    }

    /// Makes room, and writes the changes in their order.
    pub(crate) fn commit(&mut self, changes: &Changes, sizes: Sizes) -> Result<(), Error> {
        self.make_room(changes, sizes)?;
        let maps = self.maps.as_ref().ok_or_else(no_maps)?;
        for step in changes.steps() {
            maps.write(step)?;
        }
        Ok(())
    }

    /// Loads this process's programs, unless it has, and puts them in their places.
    pub(crate) fn ensure_programs(&mut self) -> Result<(), Error> {
        if self.links.len() == HOOKS.len() {
            return Ok(());
        }
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => self.load(&self.pins.maps(), &Room::new())?,
        };
        self.link(loaded)
    }

    fn make_room(&mut self, changes: &Changes, sizes: Sizes) -> Result<(), Error> {
        let needed = needed(changes, sizes);
        let Some(maps) = &self.maps else {
            let directory = self.pins.maps();
            clear(&directory)?;
            self.pins.ensure()?;
            let room = needed.iter().map(|(name, entries)| (*name, with_reserve(*entries))).collect();
            self.loaded = Some(self.create(&directory, &room)?);
            self.maps = Maps::open(&directory)?;
            return Ok(());
        };
        let mut room = Room::new();
        for (name, entries) in &needed {
            if maps.room(name)? < *entries {
                room.insert(name, with_reserve(*entries));
            }
        }
        if room.is_empty() { Ok(()) } else { self.grow(&room) }
    }

    /// Puts larger maps in the place of some, under programs that go on: the new ones are filled while the old ones serve, and
    /// each program is replaced by one that uses them. What is in neither is written after that.
    fn grow(&mut self, room: &Room) -> Result<(), Error> {
        let next = self.pins.next_maps();
        tracing::info!(?room, "larger maps take the place of those that would be full");
        clear(&next)?;
        fs::create_dir_all(&next).map_err(|source| Error::Pin { what: "make", path: next.clone(), source })?;
        for name in map::ALL.into_iter().chain([NAMES]).filter(|name| !room.contains_key(name)) {
            let (from, to) = (self.pins.maps().join(name), next.join(name));
            let kept = bpf::open_pinned(&from).and_then(|kept| bpf::pin(kept.as_fd(), &to));
            kept.map_err(|source| Error::Pin { what: "make", path: to, source })?;
        }
        let loaded = self.create(&next, room)?;
        let larger = Maps::open(&next)?.ok_or_else(no_maps)?;
        if let Some(maps) = &self.maps {
            room.keys().try_for_each(|name| maps.copy(&larger, name))?;
        }
        self.link(loaded)?;
        self.maps = Some(larger);
        let old = self.pins.version().join("maps-old");
        clear(&old)?;
        rename(&self.pins.maps(), &old)?;
        rename(&next, &self.pins.maps())?;
        clear(&old)
    }

    /// A process that died while it put larger maps in place may have left two sets. The smaller is whole for as long as it is
    /// there; nothing is written to the larger one alone before it is gone.
    fn finish_exchange(&self) -> Result<(), Error> {
        let (maps, next) = (self.pins.maps(), self.pins.next_maps());
        if !maps.join(map::SERVICES).exists() && next.join(map::SERVICES).exists() {
            clear(&maps)?;
            rename(&next, &maps)?;
        }
        clear(&next)?;
        clear(&self.pins.version().join("maps-old"))
    }

    /// Makes the maps that are not pinned there, and reads the programs that will use them.
    fn create(&self, directory: &Path, room: &Room) -> Result<Ebpf, Error> {
        let loaded = self.load(directory, room)?;
        let pin = directory.join(NAMES);
        if !pin.exists() {
            let entries = room.get(NAMES).copied().unwrap_or_else(|| with_reserve(0));
            let names = Map::<u32, NameValue>::create_hash(NAMES, entries);
            let names = names.map_err(|source| Error::Map { what: "make", map: NAMES, source })?;
            bpf::pin(names.as_fd(), &pin).map_err(|source| Error::Pin { what: "make", path: pin, source })?;
        }
        Ok(loaded)
    }

    /// Reads the object, with the maps that are pinned in that directory. Those that are not are made, and pinned.
    fn load(&self, directory: &Path, room: &Room) -> Result<Ebpf, Error> {
        let mut loader = EbpfLoader::new();
        // Nothing of it depends on the kernel's own structures.
        loader.btf(None);
        loader.override_global(global::NODE_NETNS, &self.globals.node_netns, true);
        loader.override_global(global::HAS_SET_RETVAL, &self.globals.has_set_retval, true);
        for name in map::ALL {
            loader.map_pin_path(name, directory.join(name));
            if let Some(entries) = room.get(name) {
                loader.map_max_entries(name, *entries);
            }
        }
        loader.load(self.object).map_err(|error| Error::Load(Box::new(error)))
    }

    /// Loads the programs into the kernel, and puts them in the place of those that run, or attaches them.
    fn link(&mut self, mut loaded: Ebpf) -> Result<(), Error> {
        for (name, attach_type) in HOOKS {
            let failed = |source| Error::Program { name, source: Box::new(source) };
            let not_there = || failed(aya::programs::ProgramError::NotLoaded);
            let program = loaded.program_mut(name).ok_or_else(not_there)?;
            let program: &mut CgroupSockAddr = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
            let fd = program.fd().map_err(failed)?.as_fd();
            let id = bpf::program_info(fd).map_err(|source| self.attach_error(name, source))?.id;
            let had = self.links.remove(name).map(|link| link.fd);
            let link = self.place(name, attach_type, fd, had)?;
            self.links.insert(name, Link { fd: link, program: id });
        }
        Ok(())
    }

    /// Puts a program into its place, the link of this process or of one before it; makes that anew where it leads elsewhere.
    fn place(
        &self,
        name: &'static str,
        attach_type: u32,
        program: std::os::fd::BorrowedFd<'_>,
        had: Option<OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        let pin = self.pins.links().join(name);
        let is_ours = |link: &OwnedFd| {
            bpf::link_info(link.as_fd()).is_ok_and(|it| it.cgroup == self.cgroup.id && it.attach_type == attach_type)
        };
        let pinned = bpf::open_pinned(&pin).ok();
        for link in [had, pinned].into_iter().flatten().filter(is_ours) {
            if bpf::replace(link.as_fd(), program).is_ok() {
                self.ensure_pinned(&link, &pin)?;
                return Ok(link);
            }
        }
        let link = bpf::attach(program, self.cgroup.directory.as_fd(), attach_type);
        let link = link.map_err(|source| self.attach_error(name, source))?;
        self.ensure_pinned(&link, &pin)?;
        Ok(link)
    }

    fn attach_error(&self, name: &'static str, source: io::Error) -> Error {
        Error::Attach { name, cgroup: self.cgroup.path.clone(), source }
    }

    /// Pins a link; returns whether it was not. What was pinned there goes in the same moment.
    fn ensure_pinned(&self, link: &OwnedFd, pin: &Path) -> Result<bool, Error> {
        let id = |link: &OwnedFd| bpf::link_info(link.as_fd()).map(|it| it.id).ok();
        if bpf::open_pinned(pin).ok().is_some_and(|pinned| id(&pinned).is_some() && id(&pinned) == id(link)) {
            return Ok(false);
        }
        self.pins.ensure()?;
        repin(link.as_fd(), pin)?;
        Ok(true)
    }

    /// Sees to the pins, and that this process's programs are in their places; says what was not so.
    pub(crate) fn repair(&mut self) -> Result<Vec<String>, Error> {
        let mut repaired = Vec::new();
        self.pins.ensure()?;
        if let Some(maps) = &self.maps {
            for name in maps.ensure_pinned(&self.pins.maps())? {
                repaired.push(format!("the pin of the map {name} was missing"));
            }
        }
        let mut is_misplaced = false;
        for (name, _) in HOOKS {
            let Some(link) = self.links.get(name) else { continue };
            let found = bpf::link_info(link.fd.as_fd()).unwrap_or_default();
            if found.cgroup != self.cgroup.id {
                repaired.push(format!("the program {name} was detached"));
                is_misplaced = true;
            } else if found.program != link.program {
                repaired.push(format!("another program was in the place of {name}"));
                is_misplaced = true;
            } else if self.ensure_pinned(&link.fd, &self.pins.links().join(name))? {
                repaired.push(format!("the pin of the link {name} was missing"));
            }
        }
        if is_misplaced {
            let loaded = self.load(&self.pins.maps(), &Room::new())?;
            self.link(loaded)?;
        }
        Ok(repaired)
    }

    /// Removes what another layout has pinned, once this one's programs are in place.
    pub(crate) fn sweep_other_layouts(&self) {
        for version in self.pins.other_versions() {
            let mut failures = Vec::new();
            place::remove(&version, &mut failures);
            for (path, error) in failures {
                tracing::warn!(path = %path.display(), %error, "cannot remove what another version has pinned");
            }
        }
    }

    /// Destroys connected sockets that the programs have translated and for which `is_stale` holds, in every network namespace;
    /// returns how many, and where that failed.
    pub(crate) fn destroy_sockets(
        &mut self,
        protocol: Protocol,
        is_stale: impl Fn(&SocketValue) -> bool,
    ) -> Result<(usize, Vec<String>), Error> {
        let maps = self.maps.as_ref().ok_or_else(no_maps)?;
        let storage = maps.programs_own.iter().find(|(name, _)| *name == map::SOCKETS).ok_or_else(no_maps)?.1.as_fd();
        let iterator = match self.iterator.take() {
            Some(iterator) => iterator,
            None => socket::Iterator::load().map_err(Error::Sockets)?,
        };
        let destroyed = socket::destroy(&iterator, storage, protocol, is_stale).map_err(Error::Sockets);
        self.iterator = Some(iterator);
        destroyed
    }

    pub(crate) fn maps(&self) -> Option<&Maps> {
        self.maps.as_ref()
    }
}

impl Error {
    /// What a backend says that was opened only to look.
    pub(crate) fn not_opened() -> Self {
        no_maps()
    }
}

impl Maps {
    /// Opens all that are pinned there; `None` where not all are.
    pub(crate) fn open(directory: &Path) -> Result<Option<Self>, Error> {
        fn open<K: aya::Pod, V: aya::Pod>(directory: &Path, name: &'static str) -> Result<Option<Map<K, V>>, Error> {
            match Map::open_pinned(&directory.join(name)) {
                Ok(map) => Ok(Some(map)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(Error::Pin { what: "open", path: directory.join(name), source }),
            }
        }
        let Some(services) = open(directory, map::SERVICES)? else { return Ok(None) };
        let Some(addresses) = open(directory, map::ADDRESSES)? else { return Ok(None) };
        let Some(endpoints) = open(directory, map::ENDPOINTS)? else { return Ok(None) };
        let Some(members) = open(directory, map::MEMBERS)? else { return Ok(None) };
        let Some(counters) = open(directory, map::COUNTERS)? else { return Ok(None) };
        let Some(names) = open(directory, NAMES)? else { return Ok(None) };
        let mut programs_own = Vec::new();
        for name in PROGRAMS_OWN {
            let path = directory.join(name);
            match bpf::open_pinned(&path) {
                Ok(map) => programs_own.push((name, map)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(Error::Pin { what: "open", path, source }),
            }
        }
        Ok(Some(Self { addresses, services, endpoints, members, names, counters, programs_own }))
    }

    /// Everything in them but counters.
    pub(crate) fn list(&self) -> Result<Objects, Error> {
        fn read<K: aya::Pod, V: aya::Pod>(map: &Map<K, V>, name: &'static str) -> Result<Vec<(K, V)>, Error> {
            map.entries().map_err(|source| Error::Map { what: "read", map: name, source })
        }
        let slots = read(&self.endpoints, map::ENDPOINTS)?;
        Ok(Objects {
            // Those that were never written are nobody's.
            slots: slots.into_iter().filter(|(_, slot)| slot.service_id != 0).collect(),
            names: read(&self.names, NAMES)?.into_iter().collect(),
            members: read(&self.members, map::MEMBERS)?.into_iter().collect(),
            services: read(&self.services, map::SERVICES)?.into_iter().collect(),
            addresses: read(&self.addresses, map::ADDRESSES)?.into_iter().collect(),
        })
    }

    fn write(&self, step: Step<'_>) -> Result<(), Error> {
        let (map, result) = match step {
            Step::PutSlots(all) => (map::ENDPOINTS, self.endpoints.put(all)),
            Step::PutNames(all) => (NAMES, self.names.put(all)),
            Step::PutMembers(all) => (map::MEMBERS, self.members.put(all)),
            Step::PutServices(all) => (map::SERVICES, self.services.put(all)),
            Step::PutAddresses(all) => (map::ADDRESSES, self.addresses.put(all)),
            Step::DeleteAddresses(all) => (map::ADDRESSES, self.addresses.delete(all)),
            Step::DeleteServices(all) => (map::SERVICES, self.services.delete(all)),
            Step::DeleteMembers(all) => (map::MEMBERS, self.members.delete(all)),
            Step::DeleteNames(all) => (NAMES, self.names.delete(all)),
        };
        result.map_err(|source| Error::Map { what: "write", map, source })
    }

    /// How many entries a map has room for.
    fn room(&self, name: &'static str) -> Result<u32, Error> {
        let info = match name {
            map::ADDRESSES => self.addresses.info(),
            map::SERVICES => self.services.info(),
            map::ENDPOINTS => self.endpoints.info(),
            map::MEMBERS => self.members.info(),
            map::COUNTERS => self.counters.info(),
            _ => self.names.info(),
        };
        Ok(info.map_err(|source| Error::Map { what: "look at", map: name, source })?.max_entries)
    }

    /// Copies what is in a map to a larger one.
    fn copy(&self, larger: &Self, name: &'static str) -> Result<(), Error> {
        let copied = match name {
            map::ADDRESSES => self.addresses.entries().and_then(|all| larger.addresses.put(&all)),
            map::SERVICES => self.services.entries().and_then(|all| larger.services.put(&all)),
            map::ENDPOINTS => self.endpoints.entries().and_then(|all| larger.endpoints.put(&all)),
            map::MEMBERS => self.members.entries().and_then(|all| larger.members.put(&all)),
            // What is counted between this and the exchange is lost.
            map::COUNTERS => super::counter::cpus().and_then(|cpus| self.counters.copy_each(&larger.counters, cpus)),
            _ => self.names.entries().and_then(|all| larger.names.put(&all)),
        };
        copied.map_err(|source| Error::Map { what: "copy", map: name, source })
    }

    /// Pins those that are not; returns their names.
    fn ensure_pinned(&self, directory: &Path) -> Result<Vec<&'static str>, Error> {
        let own = [
            (map::ADDRESSES, self.addresses.as_fd()),
            (map::SERVICES, self.services.as_fd()),
            (map::ENDPOINTS, self.endpoints.as_fd()),
            (map::MEMBERS, self.members.as_fd()),
            (map::COUNTERS, self.counters.as_fd()),
            (NAMES, self.names.as_fd()),
        ];
        let others = self.programs_own.iter().map(|(name, map)| (*name, map.as_fd()));
        let mut missing = Vec::new();
        for (name, map) in own.into_iter().chain(others) {
            let pin = directory.join(name);
            let pinned = bpf::open_pinned(&pin).ok().and_then(|pinned| bpf::map_info(pinned.as_fd()).ok());
            if pinned.is_none() || pinned != bpf::map_info(map).ok() {
                repin(map, &pin)?;
                missing.push(name);
            }
        }
        Ok(missing)
    }
}

/// How many entries each map must have room for. Whatever goes is there until the end of a commit.
fn needed(changes: &Changes, sizes: Sizes) -> Room {
    let entries = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Room::from([
        (map::ADDRESSES, entries(sizes.addresses + changes.addresses.delete.len())),
        (map::SERVICES, entries(sizes.services + changes.services.delete.len())),
        (map::ENDPOINTS, entries(sizes.slots)),
        (map::MEMBERS, entries(sizes.members + changes.members.delete.len())),
        // An entry for each endpoint and for what is refused; those of endpoints that are gone stay until a full sync.
        (map::COUNTERS, entries(sizes.slots + 2 * sizes.services)),
        (NAMES, entries(sizes.names + changes.names.delete.len())),
    ])
}

/// So many, and half as many again, before it has to grow the next time.
fn with_reserve(entries: u32) -> u32 {
    let entries = (entries as usize).max(LEAST_ENTRIES);
    u32::try_from((entries + entries / 2).next_power_of_two()).unwrap_or(u32::MAX)
}

/// Pins something in the place of what is pinned there.
fn repin(fd: std::os::fd::BorrowedFd<'_>, pin: &Path) -> Result<(), Error> {
    let failed = |source| Error::Pin { what: "make", path: pin.to_owned(), source };
    let mut beside = pin.as_os_str().to_owned();
    beside.push("-next");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    bpf::pin(fd, &beside).map_err(failed)?;
    fs::rename(&beside, pin).map_err(failed)
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::Pin { what: "rename", path: from.to_owned(), source })
}

/// Removes a directory with all its pins.
fn clear(directory: &Path) -> Result<(), Error> {
    let mut failures = Vec::new();
    place::remove(directory, &mut failures);
    match failures.into_iter().next() {
        Some((path, source)) => Err(Error::Pin { what: "remove", path, source }),
        None => Ok(()),
    }
}

fn no_maps() -> Error {
    Error::Map { what: "open", map: map::SERVICES, source: io::ErrorKind::NotFound.into() }
}

fn forbidden(source: io::Error) -> Error {
    let hint = match source.raw_os_error() {
        Some(nix::libc::ENOSYS) => "the kernel is built without CONFIG_BPF_SYSCALL",
        _ => {
            "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN; a container needs `privileged`, and a seccomp profile or lockdown that allows it"
        }
    };
    Error::Forbidden { hint, source }
}

//! Which cgroup a socket belongs to, as the kernel tells it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use tollgate_lab::cgroup::of_the_lab;
use tollgate_lab::process::Program;
use tollgate_lab::{Cluster, Family, NetNs, Outcome, Pod, Probe, TCP_PORT, Topology, UDP_PORT, eventually};

use crate::bpf;

pub(crate) const CASES: &[(&str, crate::Case)] = &[
    ("a_socket_belongs_to_the_cgroup_of_its_node", a_socket_belongs_to_the_cgroup_of_its_node),
    ("a_process_belongs_to_the_cgroup_of_its_node", a_process_belongs_to_the_cgroup_of_its_node),
    ("a_program_on_a_nodes_cgroup_sees_that_node_alone", a_program_on_a_nodes_cgroup_sees_that_node_alone),
    ("cgroups_go_with_their_cluster", cgroups_go_with_their_cluster),
];

/// Every namespace that there is for clients, and the cgroup that its sockets are to be in.
fn clients(cluster: &Cluster) -> Result<Vec<(&NetNs, &Path)>> {
    let mut all = Vec::new();
    for node in cluster.nodes() {
        let namespaces = node.pods().iter().map(Pod::netns).chain([node.netns()]);
        let cgroup = node.cgroup()?;
        all.extend(namespaces.map(|netns| (netns, cgroup)));
    }
    let outside = of_the_lab()?;
    all.extend([cluster.host(1), cluster.control_host()].map(|host| (host.netns(), outside)));
    Ok(all)
}

fn a_socket_belongs_to_the_cgroup_of_its_node(cluster: &mut Cluster) -> Result<()> {
    let server = cluster.pod("pod-2a");
    for (netns, cgroup) in clients(cluster)?.into_iter().filter(|(netns, _)| netns.name() != "control-plane") {
        for family in Family::ALL {
            let probe = Probe::from(netns);
            let to = server.socket(family, TCP_PORT);
            let connection = probe.open(to)?;
            let from = connection.local_addr()?;
            ensure_in(cgroup, cgroup_of(netns, Transport::Tcp, from, to)?, netns.name())?;
            // The other end, which the runtime's threads have accepted.
            let own = cluster.node(2).cgroup()?;
            ensure_in(own, cgroup_of(server.netns(), Transport::Tcp, to, from)?, "the server")?;
            let to = server.socket(family, UDP_PORT);
            let flow = probe.flow(to)?;
            let from = SocketAddr::new(from.ip(), flow.source_port()?);
            ensure_in(cgroup, cgroup_of(netns, Transport::Udp, from, to)?, netns.name())?;
        }
    }
    Ok(())
}

fn ensure_in(wanted: &Path, id: u64, whose: &str) -> Result<()> {
    // A cgroup's id is the inode number of its folder (cgroup_id, include/linux/cgroup.h).
    let wanted_id = wanted.metadata().with_context(|| format!("{}", wanted.display()))?.ino();
    ensure!(id == wanted_id, "a socket of {whose} is in cgroup {id}, and not in {wanted_id}, {}", wanted.display());
    Ok(())
}

fn a_process_belongs_to_the_cgroup_of_its_node(cluster: &mut Cluster) -> Result<()> {
    for (netns, cgroup) in clients(cluster)? {
        // A shell and its child.
        let mut program = Program::words("/bin/sh -c", netns);
        program.arguments.push("cat /proc/$$/cgroup; cat /proc/self/cgroup".into());
        let (_, output) = program.run()?;
        let lines: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("0::")).collect();
        // As the lab's cgroup namespace has them.
        ensure!(lines.len() == 2 && lines[0] == lines[1], "{}: {output}", netns.name());
        ensure!(cgroup.ends_with(lines[0].trim_start_matches('/')), "{} has processes in {}", netns.name(), lines[0]);
    }
    Ok(())
}

fn a_program_on_a_nodes_cgroup_sees_that_node_alone(cluster: &mut Cluster) -> Result<()> {
    let server = cluster.pod("pod-2b").socket(Family::V4, TCP_PORT);
    let blocked = |cluster: &Cluster| -> Result<Vec<String>> {
        let mut blocked = Vec::new();
        let outside = cluster.host(1).netns();
        let nodes = cluster.nodes().iter().flat_map(|node| node.pods().iter().map(Pod::netns).chain([node.netns()]));
        for netns in nodes.chain([outside]) {
            match Probe::from(netns).tcp(server).outcome {
                Outcome::Answered(_) => {}
                // The program's refusal, from connect(2) itself.
                Outcome::Failed(error) if error.contains("Operation not permitted") => {
                    blocked.push(netns.name().to_owned());
                }
                other => bail!("{} sees neither: {other}", netns.name()),
            }
        }
        Ok(blocked)
    };
    ensure!(blocked(cluster)?.is_empty(), "nothing is attached yet");
    let node = cluster.node(1);
    let root = node.bpf_root()?;
    ensure!(root != cluster.node(2).bpf_root()?, "each node has its own");
    std::fs::create_dir(root).with_context(|| format!("{} can't be made", root.display()))?;
    let pin = root.join("connect4");
    bpf::forbid_connect4(node.cgroup()?, &pin)?;
    let seen = blocked(cluster)?;
    ensure!(seen == ["pod-1a", "pod-1b", "node-1"], "the program on node 1 has seen {seen:?}");
    // Nothing but the pin has held it; the kernel detaches it a moment later.
    std::fs::remove_file(&pin)?;
    eventually("the program to be gone", || {
        let seen = blocked(cluster)?;
        ensure!(seen.is_empty(), "it still sees {seen:?}");
        Ok(())
    })
}

fn cgroups_go_with_their_cluster(cluster: &mut Cluster) -> Result<()> {
    let other = Cluster::new(Topology::default())?;
    let paths: Vec<PathBuf> = other.nodes().iter().map(|node| Ok(node.cgroup()?.to_owned())).collect::<Result<_>>()?;
    let mount = other.node(1).bpf_root()?.parent().context("a mount")?.to_owned();
    ensure!(paths.iter().all(|path| path.is_dir()), "{paths:?}");
    ensure!(cluster.node(1).cgroup()? != paths[0], "labs have cgroups of their own");
    drop(other);
    ensure!(!paths.iter().any(|path| path.exists()) && !mount.exists(), "they stay: {paths:?}, {}", mount.display());
    Ok(())
}

/// Labs that were killed have left folders: `run_lab`, which starts one inside this and ends it, leaves none.
pub(crate) fn ensure_swept(run_lab: impl FnOnce() -> Result<()>) -> Result<()> {
    let left = folders_of_labs()?;
    ensure!(!left.is_empty(), "this shows nothing where nothing is left");
    // A process that nobody can see any more may not have left its cgroup yet.
    for folder in left {
        eventually("everybody to have left", || {
            let events = std::fs::read_to_string(folder.join("cgroup.events"))?;
            ensure!(events.contains("populated 0"), "{} has {events}", folder.display());
            Ok(())
        })?;
    }
    run_lab()?;
    let left = folders_of_labs()?;
    ensure!(left.is_empty(), "a lab removes its own folder and those of dead ones, but there is {left:?}");
    Ok(())
}

/// The folders of labs that were started inside this one.
fn folders_of_labs() -> Result<Vec<PathBuf>> {
    let root = of_the_lab()?.parent().context("the lab's own folder")?;
    let folders = std::fs::read_dir(root)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_lab = |path: &PathBuf| path.to_string_lossy().contains("/tollgate-lab-");
    Ok(folders.filter(is_lab).collect())
}

#[derive(Clone, Copy)]
enum Transport {
    Tcp = libc::IPPROTO_TCP as isize,
    Udp = libc::IPPROTO_UDP as isize,
}

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The attribute with the cgroup's id (linux/inet_diag.h), since Linux 5.8.
const INET_DIAG_CGROUP_ID: u16 = 21;
/// An `nlmsghdr`, and a `struct inet_diag_msg` after it.
const REPLY_HEAD: usize = 16 + 72;

/// The id of the cgroup of the socket in `netns` that is connected `from` there `to` elsewhere (sock_diag(7)).
fn cgroup_of(netns: &NetNs, transport: Transport, from: SocketAddr, to: SocketAddr) -> Result<u64> {
    let request = request(transport, from, to);
    let reply = netns.run(move || ask(&request)).with_context(|| format!("{}: from {from} to {to}", netns.name()))?;
    ensure!(
        reply.len() >= REPLY_HEAD && reply[4..6] == SOCK_DIAG_BY_FAMILY.to_ne_bytes(),
        "{}: {reply:?}",
        netns.name()
    );
    let mut rest = &reply[REPLY_HEAD..];
    while let [l0, l1, k0, k1, value @ ..] = rest {
        let (length, kind) = (usize::from(u16::from_ne_bytes([*l0, *l1])), u16::from_ne_bytes([*k0, *k1]));
        if kind == INET_DIAG_CGROUP_ID {
            return Ok(u64::from_ne_bytes(value[..8].try_into()?));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    bail!("the kernel does not tell the cgroup of a socket of {}", netns.name())
}

/// An `nlmsghdr` and a `struct inet_diag_req_v2` for one socket.
fn request(transport: Transport, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    // "src and dst are swapped for historical reasons" (udp_dump_one, net/ipv4/udp_diag.c).
    let (from, to) = if matches!(transport, Transport::Udp) { (to, from) } else { (from, to) };
    let family = if from.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut message = Vec::new();
    message.extend(72_u32.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(u16::try_from(libc::NLM_F_REQUEST).expect("a bit of 16").to_ne_bytes());
    message.extend([0; 8]);
    message.extend([u8::try_from(family).expect("a small number"), transport as u8, 0, 0]);
    // Every state.
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(from.port().to_be_bytes());
    message.extend(to.port().to_be_bytes());
    for ip in [from.ip(), to.ip()] {
        match ip {
            IpAddr::V4(ip) => message.extend(ip.octets().into_iter().chain([0; 12])),
            IpAddr::V6(ip) => message.extend(ip.octets()),
        }
    }
    // Any interface, and no cookie (INET_DIAG_NOCOOKIE).
    message.extend([0; 4]);
    message.extend([0xff; 8]);
    message
}

fn ask(request: &[u8]) -> io::Result<Vec<u8>> {
    let protocol = SockProtocol::NetlinkSockDiag;
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut reply = vec![0; 4096];
    let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    reply.truncate(length);
    Ok(reply)
}

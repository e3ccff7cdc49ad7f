//! The tables' sets, chains and rules.

use tollgate_nftables::attribute::Bytes;
use tollgate_nftables::batch::Batch;
use tollgate_nftables::chain::{Chain, Hook};
use tollgate_nftables::rule::Rule;
use tollgate_nftables::set::{DataType, Declaration, Fields, Set};
use tollgate_nftables::term::{ADDRESS_LOCAL, Field, Meta, Term, destination_address_type};
use tollgate_nftables::{IpFamily, Protocol, Table};

use super::exception::Exceptions;
use super::{BRIDGE, table};

/// The name of a chain without rules that says which layout this is, so that a plugin finds out whether it has to write it.
/// It counts up when the layout changes.
pub(super) const MARKER: &str = "layout-1";

/// The bit of a packet's mark that asks `postrouting` to masquerade it, on its way through one node only. It is the one that
/// the reference plugin `portmap` uses; kube-proxy and Tollgate's own proxy use 0x4000.
const MASQUERADE: u32 = 0x2000;

/// A table's contents, without elements.
pub(super) struct Layout {
    pub(super) table: Table,
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<(Chain, Vec<Rule>)>,
}

/// `enum nf_ip_hook_priorities`: after `NF_IP_PRI_NAT_DST` (-100), where kube-proxy, Tollgate's proxy and iptables have
/// Services, so that a Service's address or NodePort wins over a host port of the same number (CVE-2019-9946).
const AFTER_DESTINATIONS: i32 = -90;
/// After `NF_IP_PRI_NAT_SRC` (100), likewise.
const AFTER_SOURCES: i32 = 110;
/// `NF_IP_PRI_RAW`: before connections are tracked.
const RAW: i32 = -300;
/// `NF_BR_PRI_NAT_DST_BRIDGED`: before everything else that looks at frames.
const FIRST_OF_BRIDGE: i32 = -300;

const ETHERNET_ARP: u16 = 0x0806;
const ETHERNET_IPV4: u16 = 0x0800;
const ETHERNET_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const UDP: u8 = 17;
const DHCP_SERVER: u16 = 67;
/// ICMPv6 types of router advertisements, neighbour advertisements and redirects (RFC 4861, section 4).
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// Ethernet addresses of 6 bytes for IPv4 addresses of 4 (RFC 826).
const ARP_FORM: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// The first octet of the addresses that a node has for itself alone.
const LOOPBACK: u8 = 127;

/// All that is there whatever the pods are.
pub(super) fn bridge() -> Layout {
    let set = |name: &str, second: DataType, purpose: &str| {
        Declaration::set(Fields::Type(vec![DataType::Ifname, second])).comment(purpose).named(name)
    };
    let ports = Declaration::vmap(Fields::Type(vec![DataType::Ifname]))
        .comment("pods' ports to what is checked")
        .named("ports");
    let rules = |name: &str, rules: Vec<Rule>| (Chain::regular(name), rules);
    Layout {
        table: BRIDGE,
        sets: vec![
            ports,
            set("macs", DataType::EtherAddr, "hardware addresses of pods"),
            set("addresses4", DataType::Ipv4Addr, "addresses of pods"),
            set("addresses6", DataType::Ipv6Addr, "addresses of pods"),
        ],
        chains: vec![
            (
                Chain::base("prerouting", "filter", Hook::Prerouting, FIRST_OF_BRIDGE),
                vec![Rule::new().vmap([Term::from(Meta::Iifname)], "ports")],
            ),
            rules("check-mac", std::iter::once(check_mac()).chain(no_routers()).collect()),
            rules(
                "check",
                vec![
                    check_mac(),
                    ether(ETHERNET_ARP).goto("check-arp"),
                    ether(ETHERNET_IPV4).goto("check-ip"),
                    ether(ETHERNET_IPV6).goto("check-ip6"),
                    // Whatever else a pod sends, VLAN tags among it, could carry what is not looked at here.
                    spoofed(Rule::new()),
                ],
            ),
            rules(
                "check-arp",
                vec![
                    spoofed(Rule::new().unequal(Field::ArpForm, Bytes::new(&ARP_FORM))),
                    spoofed(Rule::new().outside([Meta::Iifname.into(), Field::ArpEtherSaddr.into()], "macs")),
                    Rule::new().within([Meta::Iifname.into(), Field::ArpSaddr.into()], "addresses4").ret(),
                    // A probe: who asks says nothing about himself (RFC 5227).
                    Rule::new().equal(Field::ArpSaddr, Bytes::new(&[0; 4])).ret(),
                    spoofed(Rule::new()),
                ],
            ),
            rules(
                "check-ip",
                vec![
                    Rule::new().within([Meta::Iifname.into(), Field::Saddr(IpFamily::V4).into()], "addresses4").ret(),
                    // Who asks for an address has none.
                    Rule::new()
                        .equal(Field::Saddr(IpFamily::V4), Bytes::new(&[0; 4]))
                        .equal(Meta::L4proto, Bytes::new(&[UDP]))
                        .equal(Field::Dport(Protocol::Udp), Bytes::new(&DHCP_SERVER.to_be_bytes()))
                        .ret(),
                    spoofed(Rule::new()),
                ],
            ),
            rules(
                "check-ip6",
                no_routers_ip6()
                    .into_iter()
                    .chain([
                        spoofed(
                            icmpv6(NEIGHBOUR_ADVERTISEMENT)
                                .outside([Meta::Iifname.into(), Field::NeighbourTarget.into()], "addresses6"),
                        ),
                        Rule::new()
                            .within([Meta::Iifname.into(), Field::Saddr(IpFamily::V6).into()], "addresses6")
                            .ret(),
                        // Duplicate address detection, and reports of multicast listeners before that.
                        Rule::new()
                            .equal(Field::Saddr(IpFamily::V6), Bytes::new(&[0; 16]))
                            .equal(Meta::L4proto, Bytes::new(&[ICMPV6]))
                            .ret(),
                        spoofed(Rule::new()),
                    ])
                    .collect(),
            ),
            (Chain::regular(MARKER), Vec::new()),
        ],
    }
}

fn ether(kind: u16) -> Rule {
    Rule::new().equal(Field::EtherType, Bytes::new(&kind.to_be_bytes()))
}

fn icmpv6(kind: u8) -> Rule {
    Rule::new().equal(Meta::L4proto, Bytes::new(&[ICMPV6])).equal(Field::Icmpv6Type, Bytes::new(&[kind]))
}

fn spoofed(rule: Rule) -> Rule {
    rule.counter().drop().comment("no pod may send that")
}

fn check_mac() -> Rule {
    spoofed(Rule::new().outside([Meta::Iifname.into(), Field::EtherSaddr.into()], "macs"))
}

/// No pod says where others should send to (CVE-2020-10749).
fn no_routers_ip6() -> [Rule; 2] {
    [ROUTER_ADVERTISEMENT, REDIRECT].map(|kind| spoofed(icmpv6(kind)))
}

fn no_routers() -> [Rule; 2] {
    [ROUTER_ADVERTISEMENT, REDIRECT].map(|kind| {
        let mut rule = ether(ETHERNET_IPV6);
        rule.expressions.extend(icmpv6(kind).expressions);
        spoofed(rule)
    })
}

/// All that a family's table has whatever the pods are.
pub(super) fn ip(family: IpFamily) -> Layout {
    let address = DataType::address(family);
    let port = || [DataType::InetProto, DataType::InetService];
    let pod = || Fields::Type(vec![address, DataType::InetService]);
    let hostports = |name: &str, key: Vec<DataType>, purpose: &str| {
        Declaration::map(Fields::Type(key), pod()).comment(purpose).named(name)
    };
    let sources = Declaration::vmap(Fields::Type(vec![address])).comment("pods that are masqueraded").named("sources");
    let bridges = Declaration::set(Fields::Type(vec![DataType::Ifname]))
        .comment("bridges of pods with host ports")
        .named("bridges");
    let mark = || Term::from(Meta::Mark);
    let to_node = || Rule::new().equal(destination_address_type(), Bytes::from(ADDRESS_LOCAL));
    let by_port = [Term::from(Meta::L4proto), Field::AnyDport.into()];
    let by_address = [Field::Daddr(family).into(), Term::from(Meta::L4proto), Field::AnyDport.into()];
    let mut chains = vec![
        (
            Chain::base("prerouting", "nat", Hook::Prerouting, AFTER_DESTINATIONS),
            vec![
                to_node().within([Term::from(Meta::Iifname)], "bridges").goto("hostports-near"),
                to_node().goto("hostports"),
            ],
        ),
        (Chain::base("output", "nat", Hook::Output, AFTER_DESTINATIONS), vec![to_node().goto("hostports-near")]),
        (
            // From pods, whose answers would take the short way over the bridge, and from the node, whose address may be one
            // that the pod cannot answer to.
            Chain::regular("hostports-near"),
            vec![
                Rule::new().set(Meta::Mark, mark() | MASQUERADE),
                Rule::new().dnat(family, by_address.clone(), "hostports-at"),
                Rule::new().dnat(family, by_port.clone(), "hostports-any"),
                Rule::new().set(Meta::Mark, mark() & !MASQUERADE).comment("no host port"),
            ],
        ),
        (
            Chain::regular("hostports"),
            vec![
                Rule::new().dnat(family, by_address, "hostports-at"),
                Rule::new().dnat(family, by_port, "hostports-any"),
            ],
        ),
        (
            Chain::base("postrouting", "nat", Hook::Postrouting, AFTER_SOURCES),
            vec![
                Rule::new().unequal(mark() & MASQUERADE, 0).set(Meta::Mark, mark() & !MASQUERADE).masquerade(),
                Rule::new().vmap([Term::from(Field::Saddr(family))], "sources"),
            ],
        ),
        (Chain::regular(MARKER), Vec::new()),
    ];
    if family == IpFamily::V4 {
        // For a host port of 127.0.0.1, route_localnet lets packets from there out of the node by that bridge; it would let
        // pods' packets in as well.
        let from_pod = Rule::new().within([Term::from(Meta::Iifname)], "bridges");
        let rule = from_pod.equal(Field::DaddrOctet, Bytes::new(&[LOOPBACK])).counter().drop();
        chains.push((
            Chain::base("raw", "filter", Hook::Prerouting, RAW),
            vec![rule.comment("no pod may dial 127.0.0.0/8")],
        ));
    }
    Layout {
        table: table(family),
        sets: vec![
            bridges,
            sources,
            hostports("hostports-any", port().to_vec(), "ports of all addresses of the node"),
            hostports(
                "hostports-at",
                std::iter::once(address).chain(port()).collect(),
                "ports of one address of the node",
            ),
        ],
        chains,
    }
}

/// The chain that masquerades, but towards some destinations; both have names by what those are, so that what is there
/// under that name is right.
pub(super) fn masquerade(family: IpFamily, exceptions: &Exceptions) -> Layout {
    let name = exceptions.set_name();
    let set = Declaration::set(Fields::Type(vec![DataType::address(family)])).interval().comment("not masqueraded");
    let rules = vec![Rule::new().within([Term::from(Field::Daddr(family))], &name).ret(), Rule::new().masquerade()];
    Layout {
        table: table(family),
        sets: vec![set.named(&name)],
        chains: vec![(Chain::regular(&exceptions.chain_name()), rules)],
    }
}

impl Layout {
    /// Writes all of it, in place of what there may be of it.
    pub(super) fn write(&self, batch: &mut Batch) {
        batch.add_table(self.table);
        self.sets.iter().for_each(|set| batch.add_set(self.table, set));
        self.chains.iter().for_each(|(chain, _)| batch.add_chain(self.table, chain));
        for (chain, rules) in &self.chains {
            batch.flush_chain(self.table, &chain.name);
            rules.iter().for_each(|rule| batch.add_rule(self.table, &chain.name, rule));
        }
    }
}

//! The tree of frontends.

use proptest::prelude::*;

use crate::backend::iptables::name::{self, CLUSTER};
use crate::backend::iptables::readback::{option, protocol};
use crate::backend::iptables::tree::{Dialled, LEAF, LEVELS, Leaf, Nodes, Tree};

use super::*;

fn leaf(key: Dialled) -> Leaf {
    Leaf { target: format!("TG-S-{key:?}").replace(' ', "").into(), comment: "test/x".into() }
}

fn tree(keys: &BTreeSet<Dialled>) -> Tree {
    let mut tree = Tree::new('C', CLUSTER);
    keys.iter().for_each(|key| tree.insert(*key, leaf(*key)));
    tree
}

/// Where a packet comes out, by the rules' own words.
fn walk(nodes: &Nodes, packet: Dialled) -> Option<String> {
    let mut chain = CLUSTER.to_owned();
    loop {
        let node = nodes.get(&chain)?;
        let matches = |rule: &&String| {
            let ip = option(rule, "-d").is_none_or(|net| net.parse::<IpNet>().unwrap().contains(&packet.ip.unwrap()));
            let of_protocol = option(rule, "-p").is_none_or(|word| protocol(word) == Some(packet.protocol));
            let port = option(rule, "--dport").is_none_or(|ports| {
                let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
                (first.parse().unwrap()..=last.parse().unwrap()).contains(&packet.port)
            });
            ip && of_protocol && port
        };
        let rule = node.rules.iter().find(matches)?;
        chain = option(rule, "-g")?.to_owned();
        if option(rule, "--comment").is_some() {
            return Some(chain);
        }
    }
}

fn ensure_shape(nodes: &Nodes) {
    for (chain, node) in nodes {
        assert!(chain.len() <= name::MAX_LENGTH, "{chain}");
        assert!(node.level < LEVELS, "{chain}");
        assert!(node.rules.len() <= LEAF || node.level == LEVELS - 1, "{chain} has {} rules", node.rules.len());
    }
}

/// Addresses that part at any digit, and near ones.
fn keys() -> impl Strategy<Value = BTreeSet<Dialled>> {
    let v4 = prop_oneof![
        (0_u32..300).prop_map(|host| 0x0a60_0000 | host),
        (0_u32..8, 0_u32..16).prop_map(|(digit, value)| 0x0a60_0000 ^ value << (4 * digit)),
        any::<u32>(),
    ];
    let v6 = prop_oneof![
        (0_u128..300).prop_map(|host| 0xfd00_0096 << 96 | host),
        (0_u128..32, 0_u128..16).prop_map(|(digit, value)| (0xfd00_0096 << 96) ^ value << (4 * digit)),
    ];
    let port = prop_oneof![Just(80_u16), 1_u16..100, any::<u16>()];
    let proto = prop_oneof![4 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)];
    let of = |ip: BoxedStrategy<Option<IpAddr>>| {
        let key = (ip, proto.clone(), port.clone()).prop_map(|(ip, protocol, port)| Dialled { ip, protocol, port });
        prop::collection::btree_set(key, 0..120).boxed()
    };
    prop_oneof![
        of(v4.prop_map(|bits| Some(IpAddr::from(bits.to_be_bytes()))).boxed()),
        of(v6.prop_map(|bits| Some(IpAddr::from(bits.to_be_bytes()))).boxed()),
        of(Just(None).boxed()),
    ]
}

proptest! {
    #[test]
    fn every_frontend_is_found_and_nothing_else(keys in keys(), other in any::<u16>()) {
        let nodes = tree(&keys).nodes();
        ensure_shape(&nodes);
        for key in &keys {
            prop_assert_eq!(walk(&nodes, *key), Some(leaf(*key).target.into()));
            let near = Dialled { port: other, ..*key };
            if !keys.contains(&near) {
                prop_assert_eq!(walk(&nodes, near), None);
            }
        }
    }

    #[test]
    fn a_tree_that_changes_is_the_same_as_one_made_at_once(keys in keys(), picks in any::<u64>(), also in any::<u64>()) {
        let subset = |bits: u64| -> BTreeSet<Dialled> {
            keys.iter().enumerate().filter(|(index, _)| bits >> (index % 64) & 1 == 1).map(|(_, key)| *key).collect()
        };
        let (old, new) = (subset(picks), subset(also));
        let (old_tree, new_tree) = (tree(&old), tree(&new));
        let changed = old.symmetric_difference(&new).copied();
        let (before, after) = Tree::changed(&old_tree, &new_tree, changed);
        let mut held = old_tree.nodes();
        for (name, node) in &before {
            prop_assert_eq!(held.get(name).map(|held| &held.rules), Some(&node.rules));
        }
        held.retain(|name, _| !before.contains_key(name) || after.contains_key(name));
        held.extend(after);
        let rules = |nodes: Nodes| nodes.into_iter().map(|(name, node)| (name, node.rules)).collect::<BTreeMap<_, _>>();
        prop_assert_eq!(rules(held), rules(new_tree.nodes()));
    }
}

#[test]
fn one_frontend_more_alters_one_chain() {
    let key = |host: u16| Dialled { ip: Some(ip(IpFamily::V4, 96, host)), protocol: Protocol::Tcp, port: 80 };
    let keys: BTreeSet<_> = (0..10_000_u16).map(|host| key(host.wrapping_mul(7))).collect();
    let old = tree(&keys);
    let mut new = old.clone();
    new.insert(key(3), leaf(key(3)));
    let (before, after) = Tree::changed(&old, &new, [key(3)]);
    let altered: Vec<_> = after.iter().filter(|(name, node)| before.get(*name) != Some(node)).collect();
    assert_eq!(altered.len(), 1, "{altered:#?}");
}

#[test]
fn addresses_that_part_at_every_digit_make_it_no_deeper() {
    let mut keys = BTreeSet::new();
    for digit in 0..32 {
        for value in 1..16_u128 {
            let ip = IpAddr::from(((0x2001_0db8_u128 << 96) ^ value << (4 * digit)).to_be_bytes());
            keys.insert(Dialled { ip: Some(ip), protocol: Protocol::Tcp, port: 443 });
        }
    }
    let nodes = tree(&keys).nodes();
    ensure_shape(&nodes);
    assert!(nodes.values().any(|node| node.level == LEVELS - 1 && node.rules.len() > LEAF), "the bound is met");
    assert!(keys.iter().all(|key| walk(&nodes, *key).is_some()));
}

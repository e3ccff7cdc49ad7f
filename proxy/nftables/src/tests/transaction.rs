//! Transactions and dumps.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;

const TABLE: Table = Table { family: Family::Ip, name: "tollgate" };
const SET: &str = "numbers";

fn set() -> Set {
    Declaration::set(Fields::Type(vec![DataType::Mark])).named(SET)
}

fn numbers(range: std::ops::Range<u32>) -> impl Iterator<Item = Element> {
    range.map(|number| Element::new(number.into()))
}

/// A table with a set of so many numbers.
fn table_with(count: u32) -> (Socket, Batch) {
    let mut socket = Socket::open().unwrap();
    let mut batch = Batch::new();
    batch.add_table(TABLE);
    batch.add_set(TABLE, &set());
    batch.add_elements(TABLE, SET, numbers(0..count));
    socket.commit(&mut batch).unwrap();
    (socket, Batch::new())
}

fn listed(socket: &mut Socket) -> Vec<u32> {
    let number = |element: Element| u32::from_ne_bytes(element.key[..].try_into().unwrap());
    let listed =
        socket.elements(TABLE, SET, |found: &mut BTreeSet<u32>, element| found.insert(number(element))).unwrap();
    listed.into_iter().collect()
}

#[test]
fn more_than_fits_a_message_or_the_usual_buffer_is_one_transaction() {
    const COUNT: u32 = 120_000;
    isolated(|| {
        let (mut socket, _) = table_with(COUNT);
        // Its table is still growing, and a dump that was not looked at closely would have gaps.
        assert!(listed(&mut socket).into_iter().eq(0..COUNT));
        let mut batch = Batch::new();
        batch.delete_elements(TABLE, SET, numbers(0..COUNT - 1));
        assert!(batch.len() > 1 << 20);
        socket.commit(&mut batch).unwrap();
        assert_eq!(listed(&mut socket), [COUNT - 1]);
    });
}

#[test]
fn what_is_refused_is_named_and_nothing_of_it_is_applied() {
    isolated(|| {
        let (mut socket, mut batch) = table_with(3);
        batch.add_elements(TABLE, SET, numbers(3..9));
        batch.delete_elements(TABLE, SET, numbers(20..21));
        // More errors than a receive buffer holds with what they are about.
        for _ in 0..1000 {
            batch.add_elements(TABLE, "nowhere", numbers(0..1000));
        }
        batch.add_elements(TABLE, SET, numbers(9..10));
        let Err(Failure::Refused { what, errno, .. }) = socket.commit(&mut batch) else { panic!("not refused") };
        assert_eq!((what.as_str(), errno), ("to delete elements of the set numbers of tollgate", Errno::ENOENT));
        assert_eq!(listed(&mut socket), [0, 1, 2]);
        // The next is not taken for it.
        let mut batch = Batch::new();
        batch.add_elements(TABLE, SET, numbers(3..4));
        socket.commit(&mut batch).unwrap();
        assert_eq!(listed(&mut socket), [0, 1, 2, 3]);
    });
}

#[test]
fn the_kernel_says_why() {
    isolated(|| {
        let (mut socket, mut batch) = table_with(1);
        batch.add_chain(TABLE, &Chain::regular("loop"));
        batch.add_rule(TABLE, "loop", &Rule::new().jump("nowhere"));
        let Err(Failure::Refused { what, errno, .. }) = socket.commit(&mut batch) else { panic!("not refused") };
        assert_eq!((what.as_str(), errno), ("to add a rule to the chain loop of tollgate", Errno::ENOENT));
        let mut batch = Batch::new();
        batch.add_chain(TABLE, &Chain::base("a", "nat", Hook::Prerouting, -500));
        let Err(Failure::Refused { errno, .. }) = socket.commit(&mut batch) else { panic!("not refused") };
        // Below the priority of connection tracking there is no nat.
        assert_eq!(errno, Errno::EOPNOTSUPP);
    });
}

#[test]
fn a_check_finds_what_a_commit_would_and_applies_nothing() {
    isolated(|| {
        let (mut socket, mut batch) = table_with(1);
        batch.delete_table(TABLE);
        batch.add_table(TABLE);
        socket.check(&mut batch).unwrap();
        assert_eq!(listed(&mut socket), [0]);
        batch.add_chain(TABLE, &Chain::regular("a"));
        batch.add_rule(TABLE, "a", &Rule::new().goto("nowhere"));
        assert!(matches!(socket.check(&mut batch), Err(Failure::Refused { errno: Errno::ENOENT, .. })));
        // What was checked can be committed, and so can what was refused once it is complete.
        let mut batch = Batch::new();
        batch.delete_table(TABLE);
        socket.check(&mut batch).unwrap();
        assert!(socket.has_table(TABLE).unwrap());
        socket.commit(&mut batch).unwrap();
        assert!(!socket.has_table(TABLE).unwrap());
        assert_eq!(listed(&mut socket), [] as [u32; 0]);
    });
}

#[test]
fn a_socket_stays_with_the_namespace_it_was_opened_in() {
    isolated(|| {
        let (mut socket, _) = table_with(1);
        isolated(move || {
            assert!(socket.has_table(TABLE).unwrap());
            assert!(!Socket::open().unwrap().has_table(TABLE).unwrap());
        });
    });
}

/// Others change their tables all the time; of rules the kernel then says that a dump may have gaps, of elements nothing.
#[test]
fn a_dump_while_others_change_their_tables_is_whole() {
    const COUNT: u32 = 20_000;
    isolated(|| {
        let (mut socket, mut batch) = table_with(COUNT);
        batch.add_chain(TABLE, &Chain::regular("long"));
        (0..2000).for_each(|_| batch.add_rule(TABLE, "long", &Rule::new().drop().comment("one of many")));
        socket.commit(&mut batch).unwrap();
        let (stops, mut other) = (Arc::new(AtomicBool::new(false)), Socket::open().unwrap());
        let stop = stops.clone();
        // Now and then within twenty dumps, and however slow the machine is, not within each.
        let start = Instant::now();
        socket.rules(TABLE).unwrap();
        let pause = (4 * start.elapsed()).max(Duration::from_millis(20));
        let changes = std::thread::spawn(move || {
            let mut changes = 0;
            let table = Table { family: Family::Ip6, name: "other" };
            while !stop.load(Ordering::Relaxed) {
                let mut batch = Batch::new();
                batch.add_table(table);
                batch.delete_table(table);
                other.commit(&mut batch).unwrap();
                changes += 1;
                std::thread::sleep(pause);
            }
            changes
        });
        for _ in 0..20 {
            assert!(listed(&mut socket).into_iter().eq(0..COUNT));
            assert_eq!(socket.rules(TABLE).unwrap().len(), 2000);
        }
        stops.store(true, Ordering::Relaxed);
        assert!(changes.join().unwrap() > 3);
    });
}

#[test]
fn other_tables_of_the_same_name_or_family_are_not_dumped() {
    isolated(|| {
        nft(
            &["-f", "-"],
            "table ip other { chain a { }\n set b { type mark; }\n }\ntable ip6 tollgate { chain c { }\n }\n",
        );
        let (mut socket, mut batch) = table_with(1);
        batch.add_chain(TABLE, &Chain::regular("ours"));
        batch.add_rule(TABLE, "ours", &Rule::new().drop());
        socket.commit(&mut batch).unwrap();
        let dumped = dump(IpFamily::V4);
        assert_eq!(dumped.chains, [Chain::regular("ours")]);
        assert_eq!(dumped.sets.iter().map(|set| &*set.name).collect::<Vec<_>>(), [SET]);
        assert_eq!(dumped.rules, [("ours".into(), Rule::new().drop())]);
    });
}

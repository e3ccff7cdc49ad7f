use std::time::{Duration, SystemTime};

use super::{applied, revisions};
use crate::store::embedded::compaction::share_of;
use crate::store::{Change, Compaction, Embedded, Retention, Store};

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second)
}

#[test]
fn changes_go_when_they_are_too_old_and_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { changes: 1_000, age: Some(Duration::from_secs(10)), bytes: None };
    let store = Embedded::open(dir.path(), retention).unwrap();
    // Two commits in every second.
    for revision in 1..=40 {
        store.commit_at(&[applied(revision)], at(revision / 2)).unwrap();
    }
    // At 20 s: what was written at 9 s and before, revision 19 being the last of that, is too old.
    let compacted = store.position().unwrap().compacted;
    assert!((18..=19).contains(&compacted), "{compacted}");
    assert_eq!(revisions(store.history(compacted - 1, 99).unwrap()), Err(compacted));
    assert_eq!(revisions(store.history(compacted, 99).unwrap()), Ok((compacted + 1..=40).collect()));
    // Nobody writes any more.
    let step = store.compact_at(at(26)).unwrap();
    assert!((30..=31).contains(&step.compacted) && !step.has_more, "{step:?}");
    assert_eq!(store.compact_at(at(1_000)).unwrap(), Compaction { compacted: 39, has_more: false });
    assert_eq!(store.usage().history_changes, 1);
    // A clock that goes back removes nothing and disturbs nothing.
    store.commit_at(&[applied(41)], at(0)).unwrap();
    assert_eq!(revisions(store.history(39, 99).unwrap()), Ok(vec![40, 41]));
}

#[test]
fn the_history_stays_within_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { changes: 1_000, age: None, bytes: Some(400) };
    let store = Embedded::open(dir.path(), retention).unwrap();
    for revision in 1..=60 {
        store.commit(&[applied(revision)]).unwrap();
        let usage = store.usage();
        assert!(usage.history_bytes <= 400 && usage.history_changes > 0, "{usage:?}");
    }
    let usage = store.usage();
    // A path of 19 or 20 bytes and some JSON: more than 10, fewer than 20 of them.
    assert!((10..20).contains(&usage.history_changes), "{usage:?}");
    // One change that is larger than all of that stays alone.
    let Change::Apply(mut record) = applied(61) else { unreachable!() };
    record.json = vec![b' '; 1_000].into();
    store.commit(&[Change::Apply(record)]).unwrap();
    assert_eq!(store.usage().history_changes, 1);
    drop(store);
    // The sum is kept over a restart.
    let store = Embedded::open(dir.path(), retention).unwrap();
    assert!((1_000..1_100).contains(&store.usage().history_bytes), "{:?}", store.usage());
}

#[test]
fn lower_limits_are_reached_step_by_step() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Retention::newest(10_000)).unwrap();
    store.commit(&(1..=3_000).map(applied).collect::<Vec<_>>()).unwrap();
    drop(store);
    let store = Embedded::open(dir.path(), Retention::newest(10)).unwrap();
    assert_eq!(store.usage().history_changes, 3_000);
    // A write takes a bounded part of the work upon itself.
    assert_eq!(store.commit(&[applied(3_001)]).unwrap(), share_of(1));
    let mut steps = 0;
    while store.compact().unwrap().has_more {
        steps += 1;
    }
    assert_eq!(steps, 2);
    assert_eq!(store.usage().history_changes, 10);
    assert_eq!(revisions(store.history(2_991, 99).unwrap()), Ok((2_992..=3_001).collect()));
}

#[test]
fn the_file_does_not_grow_with_the_number_of_writes() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = Embedded::open(dir.path(), Retention::newest(50)).unwrap();
    let write = |revision| {
        let Change::Apply(mut record) = applied(revision) else { unreachable!() };
        record.json = vec![b' '; 2_000].into();
        store.commit(&[Change::Apply(record)]).unwrap();
    };
    (1..=300).for_each(write);
    let settled = store.usage().file_bytes;
    // 50 changes and 3 objects of 2 kB are some 100 kB; redb keeps a few copies of pages that it writes.
    assert!(settled < 2 << 20, "{settled}");
    (301..=1_500).for_each(write);
    let usage = store.usage();
    assert!(usage.file_bytes <= settled * 2, "{settled} -> {usage:?}");
}

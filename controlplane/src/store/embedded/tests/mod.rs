mod compaction;
mod damage;

use tollgate_api::v1::Key;

use super::*;

fn applied(revision: u64) -> Change {
    let json = format!("{{\"n\":{revision}}}").into_bytes().into();
    Change::Apply(Record { key: Key::node(format!("n{}", revision % 3)), revision, json })
}

fn revisions(history: History) -> Result<Vec<u64>, u64> {
    match history {
        History::Changes(changes) => Ok(changes.iter().map(Change::revision).collect()),
        History::Compacted(compacted) => Err(compacted),
    }
}

#[test]
fn what_is_committed_is_found_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("made/on/the/way");
    let store = Embedded::open(&data_dir, Retention::newest(100)).unwrap();
    let made = store.position().unwrap();
    assert_eq!((made.revision, made.compacted), (0, 0));
    store.commit(&[applied(1), applied(2)]).unwrap();
    store.commit(&[Change::Delete { key: Key::node("n1"), revision: 3 }]).unwrap();
    drop(store);

    let store = Embedded::open(&data_dir, Retention::newest(100)).unwrap();
    let (position, records) = store.load().unwrap();
    assert_eq!(position, Position { revision: 3, ..made });
    assert_eq!(records.iter().map(|record| record.key.name.as_str()).collect::<Vec<_>>(), ["n2"]);
    let deleted = Change::Delete { key: Key::node("n1"), revision: 3 };
    assert_eq!(store.history(0, 9).unwrap(), History::Changes(vec![applied(1), applied(2), deleted]));
    assert_eq!(revisions(store.history(1, 1).unwrap()), Ok(vec![2]));
    assert_eq!(revisions(store.history(3, 9).unwrap()), Ok(vec![]));
}

#[test]
fn two_stores_have_different_ids() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = |dir: &tempfile::TempDir| {
        Embedded::open(dir.path(), Retention::newest(1)).unwrap().position().unwrap().store_id
    };
    assert_ne!(id(&one), id(&other));
}

#[test]
fn a_gap_in_the_revisions_is_refused_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Retention::newest(100)).unwrap();
    store.commit(&[applied(1)]).unwrap();
    let error = store.commit(&[applied(2), applied(4)]).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert_eq!(store.position().unwrap().revision, 1);
    store.commit(&[applied(2)]).unwrap();
}

#[test]
fn old_history_is_compacted_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Retention::newest(4)).unwrap();
    let mut compacted = 0;
    for revision in 1..=20 {
        compacted = store.commit(&[applied(revision)]).unwrap();
        assert!(revision - compacted >= revision.min(4) && revision - compacted <= 8, "{revision} {compacted}");
    }
    assert!(compacted > 0);
    assert_eq!(store.position().unwrap().compacted, compacted);
    assert_eq!(revisions(store.history(compacted - 1, 99).unwrap()), Err(compacted));
    assert_eq!(revisions(store.history(compacted, 99).unwrap()), Ok((compacted + 1..=20).collect()));
    assert_eq!(store.load().unwrap().1.len(), 3);
}

#[test]
fn a_store_is_opened_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Retention::newest(1)).unwrap();
    assert!(matches!(Embedded::open(dir.path(), Retention::newest(1)), Err(Error::InUse { .. })));
    drop(store);
    Embedded::open(dir.path(), Retention::newest(1)).unwrap();
}

#[test]
fn a_file_that_is_no_store_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE_NAME), vec![7; 8192]).unwrap();
    let error = Embedded::open(dir.path(), Retention::newest(1)).err().unwrap();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains(FILE_NAME), "{error}");
}

#[test]
fn a_missing_change_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    drop(Embedded::open(dir.path(), Retention::newest(9)).unwrap());
    let database = Database::open(dir.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert(REVISION, 5).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Embedded::open(dir.path(), Retention::newest(9)).err().unwrap();
    assert!(error.to_string().contains("the newest change is of revision 0, the store at 5"), "{error}");
}

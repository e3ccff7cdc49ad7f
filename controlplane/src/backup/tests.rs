use std::fs;
use std::path::Path;

use serde_json::json;
use tollgate_api::v1::Key;

use super::*;
use crate::store::{Embedded, History, Retention, Store};

fn record(key: Key, revision: u64) -> Record {
    let json = json!({"metadata": {"uid": format!("uid-{}", key.name), "resourceVersion": revision.to_string()},
                      "lines": "a\nb", "numbers": [1.0, u64::MAX, -1, 0.1]});
    Record { key, revision, json: json.to_string().into_bytes().into() }
}

fn backup() -> Backup {
    let records = vec![record(Key::namespace("default"), 1), record(Key::service("default", "web"), 7)];
    Backup { store_id: "old".into(), revision: 9, records }
}

fn written(dir: &Path) -> PathBuf {
    let file = dir.join("backup.jsonl");
    write(&backup(), &file).unwrap();
    file
}

#[test]
fn a_backup_is_read_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path());
    assert_eq!(read(&file).unwrap(), backup());
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], r#"{"tollgateBackup":1,"storeId":"old","revision":9,"objects":2}"#);
    assert!(lines[2].starts_with(r#"{"path":"/registry/services/specs/default/web","revision":7,"object":{"#));
    assert_eq!(lines.len(), 4);
    // An earlier backup is replaced, and nothing is left beside it.
    write(&Backup { revision: 10, ..backup() }, &file).unwrap();
    assert_eq!(read(&file).unwrap().revision, 10);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_backup_that_can_not_be_written_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup.jsonl");
    fs::create_dir(&file).unwrap();
    let error = write(&backup(), &file).unwrap_err();
    assert!(error.to_string().starts_with("cannot write the backup "), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn every_cut_and_every_changed_byte_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path());
    let whole = fs::read(&file).unwrap();
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(read(&file).is_err(), "cut to {length}");
        let mut changed = whole.clone();
        changed[length] ^= 1;
        fs::write(&file, &changed).unwrap();
        assert!(read(&file).is_err(), "byte {length}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path());
    let whole = fs::read_to_string(&file).unwrap();
    for (text, expected) in [
        (String::new(), "line 1: the file ends here; it has no trailer"),
        ("kind: Service\n".to_owned(), "line 1: is no header of a backup ("),
        (whole.replace("uid-web", "uid-wab"), "its checksum is "),
        (whole.replace("default/web", "web"), "line 3: \"/registry/services/specs/web\" is no object's path"),
        (whole.replace("\"revision\":7", "\"revision\":10"), "is at revision 10, the backup at 9"),
        (format!("{whole}{{}}\n"), "line 5: there is more after the trailer"),
        (whole.replace("Backup\":1", "Backup\":2"), "has format 2, this version reads format 1"),
    ] {
        fs::write(&file, &text).unwrap();
        let error = read(&file).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("backup.jsonl"), "{error}");
    }
}

#[test]
fn a_restored_store_is_another_one_far_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path());
    let data_dir = dir.path().join("made/data");
    let restored = restore(&file, &data_dir).unwrap();
    let newest = 9 + REVISION_GAP;
    assert_eq!((restored.from, restored.objects), (("old".to_owned(), 9), 2));
    assert_eq!((restored.position.revision, restored.position.compacted), (newest, newest - 1));
    assert_ne!(&*restored.position.store_id, "old");

    let store = Embedded::open(&data_dir, Retention::newest(10)).unwrap();
    let (position, records) = store.load().unwrap();
    assert_eq!(position, restored.position);
    let expected = [record(Key::namespace("default"), newest), record(Key::service("default", "web"), 7)];
    assert_eq!(records, expected);
    assert_eq!(store.history(newest, 9).unwrap(), History::Changes(Vec::new()));
    assert_eq!(store.history(9, 9).unwrap(), History::Compacted(newest - 1));
    store.commit(&[store::Change::Delete { key: Key::service("default", "web"), revision: newest + 1 }]).unwrap();
}

#[test]
fn nothing_is_restored_over_anything_or_from_a_damaged_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = written(dir.path());
    // The file itself lies there.
    let error = restore(&file, dir.path()).unwrap_err().to_string();
    assert!(error.contains("is not empty: it has backup.jsonl"), "{error}");
    let data_dir = dir.path().join("data");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("uid-web", "uid-wab")).unwrap();
    assert!(matches!(restore(&file, &data_dir), Err(Error::Damaged { .. })));
    assert!(!data_dir.exists());
}

use std::fs;
use std::os::unix::fs::PermissionsExt;

use jiff::ToSpan;
use tempfile::TempDir;

use super::*;

fn request(dir: &TempDir) -> Request {
    Request {
        dir: dir.path().join("pki"),
        server_names: Vec::new(),
        operators: Vec::new(),
        viewers: Vec::new(),
        nodes: Vec::new(),
        validity: 90.days(),
    }
}

fn words(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn listing(request: &Request) -> Vec<(String, u32)> {
    let mut files: Vec<_> = fs::read_dir(&request.dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_first_set_up_has_a_ca_a_server_an_operator_and_the_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let request = Request {
        server_names: words(&["cp.example.com", "192.0.2.1", "localhost"]),
        nodes: words(&["a", "b.example"]),
        ..request(&dir)
    };
    let made = make(&request).unwrap();
    assert!(made.is_new_authority);
    let subjects: Vec<_> = made.certificates.iter().map(|made| made.subject.clone()).collect();
    let names = words(&["localhost", "127.0.0.1", "::1", "cp.example.com", "192.0.2.1"]);
    let expected = [
        Subject::Server(names),
        Subject::Operator("operator".to_owned()),
        Subject::Node("a".to_owned()),
        Subject::Node("b.example".to_owned()),
    ];
    assert_eq!(subjects, expected);
    assert!(made.certificates.iter().all(|made| !made.is_renewed));
    let mut expected = Vec::new();
    for stem in ["ca", "node-a", "node-b.example", "operator", "server"] {
        expected.extend([(format!("{stem}.crt"), 0o644), (format!("{stem}.key"), 0o600)]);
    }
    assert_eq!(listing(&request), expected);
    assert_eq!(fs::metadata(&request.dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_ca_that_is_there_issues_more_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let first = request(&dir);
    make(&first).unwrap();
    let file = |name: &str| fs::read(first.dir.join(name)).unwrap();
    let before = [file("ca.key"), file("ca.crt"), file("server.key")];
    let error = make(&first).unwrap_err().to_string();
    assert!(error.contains("say what it should issue"), "{error}");
    let more = Request { viewers: words(&["backup"]), nodes: words(&["c"]), ..first.clone() };
    assert!(!make(&more).unwrap().is_new_authority);
    assert_eq!([file("ca.key"), file("ca.crt"), file("server.key")], before);
    // Again: a renewed one, with another key.
    let old = file("node-c.key");
    assert!(make(&more).unwrap().certificates.iter().all(|made| made.is_renewed));
    assert_ne!(file("node-c.key"), old);
    assert_eq!(fs::metadata(first.dir.join("node-c.key")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn half_a_ca_or_another_ca_s_key_is_named_and_left_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (request, other) = (Request { nodes: words(&["a"]), ..request(&dir) }, request(&other));
    make(&request).unwrap();
    make(&other).unwrap();
    let fails = |expected: &str| {
        let before = listing(&request);
        let error = make(&request).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(listing(&request), before);
    };
    let (certificate, key) = (request.dir.join("ca.crt"), request.dir.join("ca.key"));
    fs::copy(other.dir.join("ca.key"), &key).unwrap();
    fails("ca.key is not the key of ca.crt");
    fs::write(&key, "no key\n").unwrap();
    fails("it holds no private key in PEM");
    fs::remove_file(&key).unwrap();
    fails("ca.crt is there without ");
    fs::copy(other.dir.join("ca.key"), &key).unwrap();
    fs::copy(other.dir.join("server.crt"), &certificate).unwrap();
    fails("ca.crt is not the certificate of a CA");
    fs::remove_file(&certificate).unwrap();
    fails("ca.key is there without ");
}

#[test]
fn names_and_times_that_mean_nothing_make_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let request = request(&dir);
    for (request, expected) in [
        (Request { nodes: words(&["../a"]), ..request.clone() }, "node: \"../a\": must be at most 253"),
        (Request { nodes: words(&[""]), ..request.clone() }, "node: \"\""),
        (Request { operators: words(&["a/b"]), ..request.clone() }, "operator: \"a/b\""),
        (Request { viewers: words(&["A"]), ..request.clone() }, "viewer: \"A\""),
        (
            Request { server_names: words(&["cp:7440"]), ..request.clone() },
            "server-name: \"cp:7440\": must be a DNS name",
        ),
        (Request { validity: 0.days(), ..request.clone() }, "validity: "),
        (Request { validity: (-1).days(), ..request.clone() }, "validity: "),
        (Request { validity: 19_000.years(), ..request.clone() }, "validity: "),
    ] {
        let error = make(&request).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(!request.dir.exists());
}

#[test]
fn a_certificate_ends_with_its_ca_at_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(&Request { validity: 50.years(), ..request(&dir) }).unwrap();
    for certificate in made.certificates {
        assert_eq!(certificate.not_after, made.authority_not_after);
    }
}

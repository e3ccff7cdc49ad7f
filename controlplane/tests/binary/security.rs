//! Certificates and tokens as an operator has them: made by `certs`, given by flags, replaced while the server runs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::process::{Process, command, run};

/// The files in a directory that `certs` has made.
struct Pki(PathBuf);

impl Pki {
    fn new(dir: &Path, more: &[&str]) -> Self {
        let (is_done, told, complaints) = run(command(&["certs", "--dir"]).arg(dir).args(more), "");
        assert!(is_done && complaints.is_empty(), "{told}{complaints}");
        Pki(dir.to_owned())
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn copy(&self, name: &str, to: &Pki) {
        fs::copy(self.file(name), to.file(name)).unwrap();
    }

    fn server(&self, data_dir: &Path, more: &[&str]) -> Process {
        let (certificate, key) = (self.file("server.crt"), self.file("server.key"));
        let flags = ["--tls-cert-file", &certificate, "--tls-private-key-file", &key];
        Process::start_with(data_dir, &[&flags[..], more].concat())
    }

    /// Lists namespaces as the one with that certificate; by environment variables, as an operator sets them.
    fn list(&self, server: &Process, stem: &str) -> (bool, String) {
        let mut command = command(&["get", "ns"]);
        command.env("TOLLGATE_SERVER", &server.url).env("TOLLGATE_CERTIFICATE_AUTHORITY", self.file("ca.crt"));
        command.env("TOLLGATE_CLIENT_CERTIFICATE", self.file(&format!("{stem}.crt")));
        command.env("TOLLGATE_CLIENT_KEY", self.file(&format!("{stem}.key")));
        let (is_done, results, complaints) = run(&mut command, "");
        (is_done, results + &complaints)
    }
}

/// Waits for something that the server does by itself, and is known to do.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_certs_makes_works_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let (pki_dir, manifest) = (dir.path().join("pki"), "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    let told =
        run(command(&["certs", "--server-name", "cp.example.com", "--node", "a,b", "--dir"]).arg(&pki_dir), "").1;
    for expected in ["system:node:b, group system:nodes", "https://cp.example.com:7440", "ca.key issues certificates"] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    let pki = Pki(pki_dir);
    let server = pki.server(&dir.path().join("data"), &["--client-ca-file", &pki.file("ca.crt")]);
    let files = ["ca.crt", "operator.crt", "operator.key"].map(|name| pki.file(name));
    let flags = ["--certificate-authority", &files[0], "--client-certificate", &files[1], "--client-key", &files[2]];
    let (is_done, told, complaints) =
        run(command(&["apply", "-f", "-", "--server", &server.url]).args(flags), manifest);
    assert!(is_done && told == "namespace/shop created\n" && complaints.is_empty(), "{told}{complaints}");
    let (is_done, told) = pki.list(&server, "node-a");
    assert!(!is_done && told.contains("user \"system:node:a\" (group system:nodes) may not list namespaces"), "{told}");
    // A key that others can read still works, with a word about it.
    fs::set_permissions(pki.file("operator.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (is_done, told) = pki.list(&server, "operator");
    assert!(is_done && told.contains("operator.key (mode 0644): chmod 600 it"), "{told}");
}

#[test]
fn a_listener_that_others_reach_needs_to_be_protected() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |flags: &[&str]| {
        run(command(&["serve", "--listen", "0.0.0.0:0", "--data-dir"]).arg(dir.path().join("data")).args(flags), "")
    };
    let (is_done, _, complaints) = serve(&[]);
    let expected =
        "error: 0.0.0.0 can be reached from other machines, and whoever reaches it could read and write everything";
    assert!(!is_done && complaints.contains(expected) && complaints.contains("--insecure"), "{complaints}");
    let pki = Pki::new(&dir.path().join("pki"), &[]);
    let (certificate, key) = (pki.file("server.crt"), pki.file("server.key"));
    let (is_done, _, complaints) = serve(&["--tls-cert-file", &certificate, "--tls-private-key-file", &key]);
    assert!(!is_done && complaints.contains("error: TLS alone keeps nobody out"), "{complaints}");
    let (is_done, _, complaints) = serve(&["--tls-cert-file", &certificate]);
    assert!(!is_done && complaints.contains("tls-private-key-file: is required"), "{complaints}");
    assert!(!dir.path().join("data").exists());
    // Allowed, and told in the log.
    let server = Process::start_with(&dir.path().join("data"), &["--insecure"]);
    let (_, log) = server.signal(Signal::SIGTERM);
    assert!(log.contains("--insecure: whoever reaches"), "{log}");
}

#[test]
fn a_server_certificate_is_replaced_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Pki::new(&dir.path().join("old"), &[]), Pki::new(&dir.path().join("new"), &[]));
    // In a place of its own, so that the clients' files stay.
    let used = Pki::new(&dir.path().join("used"), &[]);
    let take = |pki: &Pki, names: &[&str]| names.iter().for_each(|name| pki.copy(name, &used));
    take(&old, &["ca.crt", "server.crt", "server.key"]);
    let server = used.server(&dir.path().join("data"), &["--client-ca-file", &used.file("ca.crt")]);
    assert!(old.list(&server, "operator").0);
    let (is_done, told) = new.list(&server, "operator");
    assert!(!is_done && told.contains("is not trusted"), "{told}");
    // Half of it: nothing changes.
    take(&new, &["server.crt"]);
    server.tell(Signal::SIGHUP);
    eventually("a complaint", || server.log().contains("server.crt: it does not go with the key"));
    assert!(old.list(&server, "operator").0);
    take(&new, &["ca.crt", "server.key"]);
    server.tell(Signal::SIGHUP);
    eventually("the new certificates", || new.list(&server, "operator").0);
    assert!(!old.list(&server, "operator").0);
    let (_, log) = server.signal(Signal::SIGTERM);
    assert!(log.contains("have changed and are in use"), "{log}");
}

#[test]
fn a_client_ca_that_is_taken_out_ends_what_its_certificates_began() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Pki::new(&dir.path().join("old"), &[]), Pki::new(&dir.path().join("new"), &[]));
    let [old_ca, new_ca] = [&old, &new].map(|pki| fs::read_to_string(pki.file("ca.crt")).unwrap());
    // The server's own certificate stays as it is.
    old.copy("ca.crt", &new);
    let clients = dir.path().join("clients.crt");
    fs::write(&clients, &old_ca).unwrap();
    let server = old.server(&dir.path().join("data"), &["--client-ca-file", clients.to_str().unwrap()]);
    let files = ["ca.crt", "operator.crt", "operator.key"].map(|name| old.file(name));
    let flags = ["--certificate-authority", &files[0], "--client-certificate", &files[1], "--client-key", &files[2]];
    let mut watch = command(&["watch", "ns", "--server", &server.url]).args(flags).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watch.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("INIT"), "{line}");
    assert!(!new.list(&server, "operator").0);
    // Both, for as long as it takes to issue all certificates anew.
    fs::write(&clients, [old_ca, new_ca.clone()].concat()).unwrap();
    server.tell(Signal::SIGHUP);
    eventually("the new CA's operator to get in", || new.list(&server, "operator").0);
    assert!(old.list(&server, "operator").0);
    assert!(watch.try_wait().unwrap().is_none());
    fs::write(&clients, new_ca).unwrap();
    server.tell(Signal::SIGHUP);
    eventually("the watch to end", || watch.try_wait().unwrap().is_some());
    let watched = watch.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&watched.stderr);
    assert!(!watched.status.success() && complaints.contains("is not accepted any more"), "{complaints}");
    assert!(new.list(&server, "operator").0 && !old.list(&server, "operator").0);
}

#[test]
fn a_token_that_is_taken_away_ends_its_watch_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (alice, bob) = ("t-alice,alice,1,system:masters\n", "t-bob,bob,2,tollgate:viewers\n");
    let tokens = file("tokens.csv", &[alice, bob].concat());
    let server = Process::start_with(&dir.path().join("data"), &["--token-auth-file", &tokens]);
    // Written once: a client may be reading them.
    let files = ["t-alice", "t-bob"].map(|token| (token, file(token, token)));
    let list = |token: &str| {
        let (_, token) = files.iter().find(|(name, _)| *name == token).unwrap();
        run(&mut command(&["get", "ns", "--server", &server.url, "--token-file", token]), "")
    };
    assert!(list("t-alice").0 && list("t-bob").0);
    let mut watch = command(&["watch", "ns", "--server", &server.url, "--token-file", &files[1].1]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watch.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("INIT"), "{line}");
    // What can't be used changes nothing, whatever the rest of it says.
    file("tokens.csv", &[alice, "t-bob"].concat());
    server.tell(Signal::SIGHUP);
    eventually("a complaint", || server.log().contains("tokens.csv: line 2: it must be token,user,uid"));
    assert!(list("t-bob").0);
    file("tokens.csv", alice);
    // By itself, without a signal.
    eventually("bob to be refused", || !list("t-bob").0);
    assert!(list("t-alice").0);
    eventually("bob's watch to end", || watch.try_wait().unwrap().is_some());
    let watched = watch.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&watched.stderr);
    assert!(
        !watched.status.success() && complaints.contains("the bearer token is not in the server's token file"),
        "{complaints}"
    );
    let (_, log) = server.signal(Signal::SIGTERM);
    assert!(!log.contains("t-bob"), "{log}");
    assert!(log.contains("every user of this machine can read this secret"), "{log}");
}

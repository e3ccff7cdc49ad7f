//! The verbs of the real binary against a real server.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::process::{Process, command, run};
use nix::sys::signal::Signal;

const MANIFEST: &str = "\
# People have comments.
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  creationTimestamp: null
  annotations: {quoted: \"yes\", number: \"8080\", lines: \"a\\nb\\n\"}
spec:
  clusterIP: 10.96.1.1
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [10.244.0.1]
- addresses: [10.244.1.1]
";

struct Fixture {
    server: Process,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Fixture { server: Process::start(&dir.path().join("data")), dir }
    }

    fn run(&self, words: &[&str], input: &str) -> (bool, String, String) {
        run(command(words).current_dir(self.dir.path()).env("TOLLGATE_SERVER", &self.server.url), input)
    }

    /// Runs a verb that is to succeed without complaints.
    fn output(&self, words: &[&str], input: &str) -> String {
        let (is_done, results, complaints) = self.run(words, input);
        assert!(is_done && complaints.is_empty(), "{words:?}: {complaints}");
        results
    }

    fn file(&self, name: &str, content: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// The lines without the age, which is the time that the test takes.
fn without_age(table: &str) -> Vec<String> {
    let is_age = |word: &&str| word.ends_with('s') && word.trim_end_matches('s').parse::<u32>().is_ok();
    table
        .lines()
        .map(|line| line.split_whitespace().filter(|word| !is_age(word)).collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn manifests_are_applied_shown_and_deleted() {
    let fixture = Fixture::new();
    fixture.file("web.yaml", MANIFEST);
    let apply = || fixture.output(&["apply", "-f", "web.yaml"], "");
    assert_eq!(apply(), "namespace/shop created\nservice/web created\nendpointslice/web-1 created\n");
    assert_eq!(apply(), "namespace/shop unchanged\nservice/web unchanged\nendpointslice/web-1 unchanged\n");
    let changed = MANIFEST.replace("port: 80,", "port: 81,");
    assert_eq!(
        fixture.output(&["apply", "-f", "-"], &changed),
        "namespace/shop unchanged\nservice/web configured\nendpointslice/web-1 unchanged\n"
    );
    assert_eq!(
        without_age(&fixture.output(&["get", "svc", "-A"], "")),
        ["NAMESPACE NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE", "shop web ClusterIP 10.96.1.1 <none> 81/TCP,53/UDP",]
    );
    assert_eq!(
        without_age(&fixture.output(&["get", "endpointslices", "web-1", "-n", "shop", "-o", "wide"], "")),
        ["NAME ADDRESSTYPE PORTS ENDPOINTS AGE SERVICE", "web-1 IPv4 8080 10.244.0.1,10.244.1.1 web"]
    );
    assert_eq!(without_age(&fixture.output(&["get", "ns"], "")), ["NAME STATUS AGE", "default Active", "shop Active"]);
    let table = fixture.output(&["get", "ns"], "");
    let columns: Vec<_> = table.lines().map(|line| line.find("STATUS").or_else(|| line.find("Active"))).collect();
    assert_eq!(columns, [Some(10); 3], "{table}");
    assert_eq!(
        fixture.output(&["delete", "-f", "web.yaml"], ""),
        "endpointslice/web-1 deleted\nservice/web deleted\nnamespace/shop deleted\n"
    );
    let (is_done, results, complaints) = fixture.run(&["get", "svc"], "");
    assert_eq!(
        (is_done, results.as_str(), complaints.as_str()),
        (true, "", "No services found in namespace default.\n")
    );
}

#[test]
fn what_get_shows_can_be_applied_again() {
    let fixture = Fixture::new();
    fixture.output(&["apply", "-f", "-"], MANIFEST);
    for format in ["yaml", "json"] {
        let shown = fixture.output(&["get", "service/web", "-n", "shop", "-o", format], "");
        assert_eq!(fixture.output(&["apply", "-f", "-"], &shown), "service/web unchanged\n", "{shown}");
        let shown = fixture.output(&["get", "eps", "-A", "-o", format], "");
        assert_eq!(fixture.output(&["apply", "-f", "-"], &shown), "endpointslice/web-1 unchanged\n", "{shown}");
    }
}

#[test]
fn a_directory_is_applied_in_order_and_bad_documents_stop_nothing() {
    let fixture = Fixture::new();
    fixture.file("all/b.yml", "kind: Node\napiVersion: v1\nmetadata: {name: b}\n");
    fixture.file("all/a.json", r#"{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "a"}}"#);
    fixture.file("all/README.md", "not for us");
    fixture.file(
        "all/c.yaml",
        "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: web}\n---\n\
         kind: Node\napiVersion: v1\nmetadata: {name: c}\n---\n\
         kind: [\n---\n\
         kind: Service\napiVersion: v1\nmetadata: {name: web}\nspec: {ports: [{port: 0}]}\n---\n\
         kind: Node\napiVersion: v1\nmetadata: {name: d}\n",
    );
    let (is_done, results, complaints) = fixture.run(&["apply", "-f", "all"], "");
    assert!(!is_done);
    assert_eq!(results, "node/a created\nnode/b created\nnode/c created\nnode/d created\n");
    let complaints: Vec<&str> = complaints.lines().collect();
    assert_eq!(
        complaints[0],
        "error: all/c.yaml: document 1 (line 1): Deployment web (apps/v1) is not supported and was skipped; \
         supported are Service, EndpointSlice, Node, Namespace, Pod"
    );
    assert!(complaints[1].starts_with("error: all/c.yaml: document 3 (line 8): is not YAML: "), "{}", complaints[1]);
    assert_eq!(
        *complaints.last().unwrap(),
        "error: all/c.yaml: document 4 (line 10): service default/web is invalid: spec.ports[0].port: 0: must be between 1 and 65535"
    );
}

#[test]
fn mistakes_are_named_with_exit_status_1() {
    let fixture = Fixture::new();
    for (words, expected) in [
        (&["get", "svc", "web"][..], "error: service default/web does not exist\n"),
        (&["delete", "svc", "web", "-n", "a"], "error: service a/web does not exist\n"),
        (
            &["delete", "ns", "default"],
            "error: namespace default can't be deleted: it is where objects without a namespace go\n",
        ),
        (
            &["get", "deploy"],
            "error: unknown kind \"deploy\"; known are services, endpointslices, nodes, namespaces, pods\n",
        ),
        (&["delete", "svc"], "error: name the service to delete\n"),
        (&["apply", "-f", "nothing.yaml"], "error: cannot read nothing.yaml: No such file or directory (os error 2)\n"),
        (&["apply", "-f", "-"], "error: there is no object in what -f names\n"),
        (
            &["watch", "svc", "--resume", "other:5"],
            "error: the watch can't be resumed: the token is of store other, this is ",
        ),
    ] {
        let (is_done, results, complaints) = fixture.run(words, "");
        assert!(!is_done && results.is_empty(), "{words:?}: {results}");
        assert!(complaints.starts_with(expected), "{words:?}: {complaints}");
    }
}

#[test]
fn a_missing_server_is_named_with_the_remedy() {
    // Bound and let go: nobody listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (is_done, _, complaints) = run(&mut command(&["get", "svc", "--server", &url]), "");
    assert!(!is_done);
    let expected = format!("error: cannot connect to {url}: is `tollgate-controlplane serve` running there?");
    assert!(complaints.starts_with(&expected), "{complaints}");
}

#[test]
fn watch_writes_a_line_for_every_event_and_resumes() {
    let fixture = Fixture::new();
    let watching = |words: &[&str]| {
        let mut child = command(words).env("TOLLGATE_SERVER", &fixture.server.url).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        (child, lines)
    };
    let (mut child, mut lines) = watching(&["watch", "no,svc"]);
    let token = lines.next().unwrap().split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(lines.next().unwrap(), format!("INIT-DONE  {token}"));
    fixture.output(&["apply", "-f", "-"], MANIFEST);
    fixture.output(&["apply", "-f", "-"], "{kind: Node, apiVersion: v1, metadata: {name: n}}");
    fixture.output(&["delete", "no/n"], "");
    let expected = ["APPLY      5         node n", "DELETE     6         node n"];
    assert_eq!([lines.next().unwrap(), lines.next().unwrap()], expected);
    child.kill().unwrap();
    child.wait().unwrap();

    let (mut child, mut lines) = watching(&["watch", "no,svc", "-A", "--resume", &token]);
    // Service and slice of one manifest are on their way at once: either may be the first.
    let line = lines.next().unwrap();
    assert!(line.starts_with("APPLY ") && line.ends_with(" service shop/web"), "{line}");
    assert_eq!([lines.next().unwrap(), lines.next().unwrap()], expected);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_closed_pipe_is_no_error() {
    let fixture = Fixture::new();
    fixture.output(&["apply", "-f", "-"], MANIFEST);
    for words in [&["get", "svc", "-A"][..], &["get", "svc", "-A", "-o", "yaml"], &["watch", "svc", "-A"]] {
        let mut child = command(words).env("TOLLGATE_SERVER", &fixture.server.url).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    }
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let fixture = Fixture::new();
    let data_dir = fixture.dir.path().join("data");
    let (is_done, _, complaints) = run(
        command(&["serve", "--listen", "127.0.0.1:0", "--metrics-bind-address", "", "--data-dir"]).arg(&data_dir),
        "",
    );
    assert!(!is_done);
    let expected =
        format!("error: {} is in use by another tollgate-controlplane", data_dir.join("tollgate.redb").display());
    assert!(complaints.contains(&expected), "{complaints}");
}

#[test]
fn signals_end_the_server_with_exit_status_0() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Process::start(dir.path());
        let mut watcher = watch_of(&server.url);
        let (is_done, log) = server.signal(signal);
        assert!(is_done && log.contains("stopped"), "{log}");
        assert!(!watcher.wait().unwrap().success());
    }
}

#[test]
fn external_ips_are_refused_unless_a_flag_allows_them() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = |ip: &str| {
        format!(
            "{{kind: Service, apiVersion: v1, metadata: {{name: web}}, spec: {{externalIPs: [{ip}], ports: [{{port: 80}}]}}}}"
        )
    };
    let apply = |server: &Process, ip: &str| {
        run(command(&["apply", "-f", "-"]).env("TOLLGATE_SERVER", &server.url), &manifest(ip))
    };
    let server = Process::start(dir.path());
    let (is_done, _, complaints) = apply(&server, "192.0.2.1");
    let expected = "service default/web is invalid: spec.externalIPs[0]: \"192.0.2.1\": is not allowed: \
                    the control plane was started without --allow-external-ips\n";
    assert!(!is_done && complaints.ends_with(expected), "{complaints}");
    server.kill();
    let server = Process::start_with(dir.path(), &["--allow-external-ips", "192.0.2.0/24,2001:db8::/64"]);
    assert!(apply(&server, "192.0.2.1").0);
    assert!(!apply(&server, "198.51.100.1").0);
    server.kill();
    // The Service stays as it is under flags that would refuse a new one.
    let server = Process::start(dir.path());
    assert_eq!(apply(&server, "192.0.2.1").1, "service/web unchanged\n");
}

/// A watch that has begun.
fn watch_of(url: &str) -> std::process::Child {
    let mut child = command(&["watch", "svc", "--server", url]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("INIT"), "{line}");
    child
}

#[test]
fn wrong_flags_are_explained() {
    let dir = Path::new("/nonexistent");
    for (words, expected) in [
        (&["--service-cidr", "10.96.0.1/16"][..], "did you mean 10.96.0.0/16?"),
        (&["--node-port-range", "9-1"], "give it as 30000-32767"),
        (&["--allow-external-ips", "192.0.2.7/24"], "did you mean 192.0.2.0/24?"),
    ] {
        let (is_done, _, complaints) = run(command(&["serve", "--data-dir"]).arg(dir).args(words), "");
        assert!(!is_done && complaints.contains(expected), "{words:?}: {complaints}");
    }
}

#[test]
fn serve_reads_a_config_file_with_the_keys_of_the_flags() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("controlplane.yaml");
    let config = |yaml: &str| {
        fs::write(&file, yaml).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let yaml = "service-cidr: [10.5.0.0/16]\nallow-external-ips: 192.0.2.0/24\n";
    let server = Process::start_with(&dir.path().join("data"), &["--config", &config(yaml)]);
    let manifest =
        "{kind: Service, apiVersion: v1, metadata: {name: web}, spec: {externalIPs: [192.0.2.1], ports: [{port: 80}]}}";
    let (is_done, _, complaints) = run(command(&["apply", "-f", "-"]).env("TOLLGATE_SERVER", &server.url), manifest);
    assert!(is_done, "{complaints}");
    let (_, shown, _) = run(command(&["get", "svc"]).env("TOLLGATE_SERVER", &server.url), "");
    assert!(shown.contains(" 10.5."), "{shown}");

    let (is_done, _, complaints) = run(&mut command(&["serve", "--config", &config("data_dir: /d\n")]), "");
    assert!(!is_done && complaints.contains("controlplane.yaml: ") && complaints.contains("data_dir"), "{complaints}");
}

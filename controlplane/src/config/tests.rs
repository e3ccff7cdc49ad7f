use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    flags: Settings,
}

fn flags(words: &[&str]) -> Settings {
    Cli::try_parse_from([&["serve"], words].concat()).unwrap().flags
}

fn load(yaml: &str, words: &[&str]) -> Result<Config, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), yaml).unwrap();
    Config::load(flags(words), Some(file.path()))
}

#[test]
fn the_file_has_the_keys_of_the_flags() {
    let words = [
        "--listen=192.0.2.1:1",
        "--tls-cert-file=/c",
        "--tls-private-key-file=/k",
        "--client-ca-file=/ca",
        "--token-auth-file=/t",
        "--insecure",
        "--data-dir=/data",
        "--service-cidr=10.0.0.0/16,fd00::/112",
        "--node-port-range=1000-2000",
        "--allow-external-ips=192.0.2.0/24,198.51.100.0/24",
        "--history=9",
        "--history-age=90m",
        "--history-size=3MiB",
        "--metrics-bind-address=192.0.2.1:2",
        "--progress-interval=5",
    ];
    let yaml = "\
# As the flags.
listen: 192.0.2.1:1
tls-cert-file: /c
tls-private-key-file: /k
client-ca-file: /ca
token-auth-file: /t
insecure: true
data-dir: /data
service-cidr: [10.0.0.0/16, 'fd00::/112']
node-port-range: 1000-2000
allow-external-ips: 192.0.2.0/24,198.51.100.0/24
history: 9
history-age: 90m
history-size: 3MiB
metrics-bind-address: 192.0.2.1:2
progress-interval: 5
";
    let by_flags = Config::load(flags(&words), None).unwrap();
    assert_eq!(format!("{:?}", load(yaml, &[]).unwrap()), format!("{by_flags:?}"));
    assert!(by_flags.server.security.insecure);
    assert_eq!(by_flags.server.node_ports, 1000..=2000);
    assert_eq!(by_flags.server.service_cidrs.to_string(), "10.0.0.0/16,fd00::/112");
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let config = load("data-dir: /file\nhistory: 7\n", &["--data-dir", "/flag"]).unwrap();
    assert_eq!(config.server.data_dir, Path::new("/flag"));
    assert_eq!(config.server.retention.changes, 7);
    assert_eq!(config.listen.to_string(), "127.0.0.1:7440");
    assert_eq!(config.server.service_cidrs.to_string(), "10.96.0.0/16,fd00:96::/112");
    assert_eq!(config.server.node_ports, server::NODE_PORTS);
}

#[test]
fn a_file_may_say_nothing() {
    for yaml in ["", "# nothing\n", "{}\n"] {
        load(yaml, &["--data-dir", "/d"]).unwrap();
    }
}

#[test]
fn what_means_nothing_is_named() {
    for (yaml, words) in [
        ("data_dir: /d", "data_dir"),
        ("data-dir: /d\nlisten: here", "listen"),
        ("data-dir: /d\nservice-cidr: 10.96.0.1/16", "did you mean 10.96.0.0/16?"),
        (
            "data-dir: /d\nservice-cidr: [10.96.0.0/16, 10.97.0.0/16]",
            "give one IPv4 range, one IPv6 range, or one of each",
        ),
        ("data-dir: /d\nnode-port-range: 2-1", "give it as 30000-32767"),
        ("data-dir: /d\nhistory: many", "line 2 column 10: give it as a number"),
        ("data-dir: /d\ninsecure: maybe", "line 2 column 11: give it as true or false"),
        ("data-dir: /d\ndata-dir: /e", "duplicate mapping key: data-dir\n"),
        ("data-dir: /d\nhistory: 0", "history: 0: it must be at least 1"),
        ("history: 1", "data-dir: is required: give --data-dir, or data-dir in the config file"),
        ("data-dir: /d\ntls-cert-file: /c", "tls-private-key-file: is required"),
        ("data-dir: /d\ntls-private-key-file: /k", "tls-cert-file: is required"),
        ("- data-dir", "config file"),
    ] {
        let error = load(yaml, &[]).unwrap_err().to_string();
        assert!(error.contains(words), "{yaml}: {error}");
    }
    let error = Config::load(Settings::default(), Some(Path::new("/no/such/file"))).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the config file /no/such/file");
}

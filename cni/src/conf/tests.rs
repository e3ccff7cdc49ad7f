//! What configurations mean, and what is said of wrong ones.

use serde_json::{Value, json};

use super::*;

fn conf(change: impl FnOnce(&mut Value)) -> Value {
    let mut conf = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "tollgate-cni",
        "ipam": { "type": "tollgate", "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]] } });
    change(&mut conf);
    conf
}

fn parse(change: impl FnOnce(&mut Value)) -> Result<NetConf, Error> {
    NetConf::parse(conf(change).to_string().as_bytes(), &Args::default())
}

/// A change to a configuration, and what is said then: the code, and how the sentence begins.
type Wrong = (fn(&mut Value), u32, &'static str);

#[test]
fn what_is_left_out_is_safe() {
    let conf = parse(|_| ()).unwrap();
    assert_eq!(conf.bridge.name, "cni0");
    assert!(conf.bridge.is_gateway && conf.bridge.is_default_gateway);
    assert!(conf.port.mac_spoof_check && conf.port.ip_spoof_check && !conf.port.isolated && conf.port.hairpin);
    assert!(!conf.ip_masq && !conf.dad && conf.mtu.is_none());
}

#[test]
fn without_ranges_the_pod_cidrs_count() {
    for change in [
        (|conf| conf["ipam"] = json!({ "type": "tollgate" })) as fn(&mut Value),
        |conf| conf["ipam"] = json!({}),
        |conf| drop(conf.as_object_mut().unwrap().remove("ipam")),
    ] {
        assert_eq!(parse(change).unwrap().ipam, Ipam::PodCidrs { routes: Vec::new() });
    }
}

#[test]
fn another_ipam_leaves_the_gateway_to_the_configuration() {
    let conf = parse(|conf| conf["ipam"] = json!({ "type": "host-local", "ranges": 7, "routes": "x" })).unwrap();
    assert_eq!(conf.ipam, Ipam::Plugin(PluginName::parse("host-local").unwrap()));
    assert!(!conf.bridge.is_gateway && !conf.bridge.is_default_gateway);
}

#[test]
fn the_runtime_s_word_counts_most() {
    let args = Args { ips: vec!["10.1.0.9".parse().unwrap()], mac: "02:00:00:00:00:09".parse().ok(), pod: None };
    let read = |change: fn(&mut Value)| {
        let conf = NetConf::parse(conf(change).to_string().as_bytes(), &args).unwrap();
        (conf.ips[0].to_string(), conf.mac.unwrap().to_string())
    };
    assert_eq!(read(|_| ()), ("10.1.0.9".into(), "02:00:00:00:00:09".into()));
    let cni = |conf: &mut Value| conf["args"] = json!({ "cni": { "ips": ["10.1.0.8"], "mac": "02:00:00:00:00:08" } });
    assert_eq!(read(cni), ("10.1.0.8".into(), "02:00:00:00:00:08".into()));
    assert_eq!(
        read(|conf| {
            conf["args"] = json!({ "cni": { "ips": ["10.1.0.8"], "mac": "02:00:00:00:00:08" } });
            conf["runtimeConfig"] = json!({ "ips": ["10.1.0.7/24"], "mac": "02:00:00:00:00:07" });
        }),
        ("10.1.0.7".into(), "02:00:00:00:00:07".into())
    );
}

#[test]
fn host_ports_are_read_with_their_addresses() {
    let conf = parse(|conf| {
        conf["runtimeConfig"] = json!({ "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1" },
            { "hostPort": 54, "containerPort": 53, "protocol": "sctp", "hostIP": "0.0.0.0" },
            { "hostPort": 55, "containerPort": 53, "hostIP": "::" },
        ] });
    });
    let ports: Vec<String> = conf.unwrap().host_ports.iter().map(|port| format!("{:?} {port}", port.host_ip)).collect();
    assert_eq!(ports, ["Any 8080/tcp", "One(192.0.2.1) 192.0.2.1:53/udp", "AnyV4 54/sctp", "AnyV6 55/tcp"]);
}

#[test]
fn what_is_wrong_is_named() {
    let wrong: &[Wrong] = &[
        (|conf| conf["cniVersion"] = json!("0.3.1"), 1, "cniVersion 0.3.1"),
        (|conf| conf["cniVersion"] = json!("2.0.0"), 1, "cniVersion 2.0.0"),
        (|conf| drop(conf.as_object_mut().unwrap().remove("cniVersion")), 1, "cniVersion (none)"),
        (|conf| conf["cniVersion"] = json!(1), 7, "cniVersion: invalid type"),
        (|conf| drop(conf.as_object_mut().unwrap().remove("name")), 7, "name: is missing"),
        (|conf| conf["name"] = json!("../pods"), 7, "name: \"../pods\""),
        (|conf| conf["name"] = json!("n".repeat(101)), 7, "name: has 101 bytes"),
        (
            |conf| conf["bridge"] = json!("a-name-that-is-too-long"),
            7,
            "bridge: \"a-name-that-is-too-long\" has 23 bytes",
        ),
        (|conf| conf["mtu"] = json!(60), 7, "mtu: 60"),
        (|conf| conf["mtu"] = json!(-1), 7, "mtu: invalid value"),
        (|conf| conf["mtu"] = json!("big"), 7, "mtu: invalid type"),
        (|conf| conf["isGateway"] = json!("yes"), 7, "isGateway: invalid type"),
        (|conf| conf["vlan"] = json!(7), 2, "vlan=7"),
        (|conf| conf["vlanTrunk"] = json!([{ "id": 7 }]), 2, "vlanTrunk="),
        (|conf| conf["ipMasqBackend"] = json!("ipfw"), 2, "ipMasqBackend=ipfw"),
        (|conf| conf["capabilities"] = json!({ "bandwidth": true }), 2, "capabilities.bandwidth=true"),
        (|conf| conf["runtimeConfig"] = json!({ "bandwidth": { "ingressRate": 7 } }), 2, "runtimeConfig.bandwidth="),
        (
            |conf| {
                conf["hairpinMode"] = json!(true);
                conf["promiscMode"] = json!(true);
            },
            7,
            "hairpinMode: not together",
        ),
        (
            |conf| {
                conf["macspoofchk"] = json!(false);
                conf["ipspoofchk"] = json!(true);
            },
            7,
            "ipspoofchk: needs",
        ),
        (|conf| conf["ipam"] = json!({ "type": "../../bin/sh" }), 7, "ipam.type: \"../../bin/sh\""),
        (|conf| conf["ipam"] = json!({ "type": ".." }), 7, "ipam.type: \"..\""),
        (|conf| conf["ipam"] = json!({ "ranges": [] }), 7, "ipam.ranges: has a set without"),
        (|conf| conf["ipam"] = json!({ "ranges": [[]] }), 7, "ipam.ranges: has a set without"),
        (|conf| conf["ipam"] = json!({ "ranges": [[{}]] }), 7, "ipam.ranges[0][0].subnet: is missing"),
        (|conf| conf["ipam"] = json!({ "subnet": "10.1.0.7/24" }), 7, "ipam.subnet: 10.1.0.7/24 has bits for the host"),
        (|conf| conf["ipam"] = json!({ "subnet": "10.1.0.0/31" }), 7, "ipam.subnet: 10.1.0.0/31 is too small"),
        (
            |conf| conf["ipam"] = json!({ "subnet": "10.1.0.0/24", "rangeEnd": "10.1.1.7" }),
            7,
            "ipam.rangeEnd: 10.1.1.7 is no",
        ),
        (|conf| conf["ipam"] = json!({ "subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.255" }), 7, "ipam.rangeEnd"),
        (
            |conf| conf["ipam"] = json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.7" }),
            7,
            "ipam.rangeEnd: 10.1.0.7 comes before",
        ),
        (
            |conf| conf["ipam"] = json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.1.0.0/16" }]] }),
            7,
            "ipam.ranges: 10.1.0.1-10.1.0.254 and",
        ),
        (
            |conf| conf["ipam"] = json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }, { "subnet": "fd00::/64" }]] }),
            7,
            "ipam.ranges[0]: IPv4 and IPv6 in one set",
        ),
        (|conf| conf["ipam"]["routes"] = json!([{ "dst": "all" }]), 7, "ipam.routes[0].dst"),
        (|conf| conf["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0", "gw": "fd00::1" }]), 7, "ipam.routes[0].gw"),
        (|conf| conf["runtimeConfig"] = json!({ "mac": "01:00:00:00:00:01" }), 7, "runtimeConfig.mac"),
        (|conf| conf["runtimeConfig"] = json!({ "ips": ["10.1.0.7", "x"] }), 7, "runtimeConfig.ips[1]"),
        (|conf| conf["args"] = json!({ "cni": { "ips": 7 } }), 7, "args.cni.ips"),
        (
            |conf| conf["runtimeConfig"] = json!({ "portMappings": [{ "hostPort": 0, "containerPort": 80 }] }),
            7,
            "runtimeConfig.portMappings[0].hostPort: 0 is no port",
        ),
        (
            |conf| conf["runtimeConfig"] = json!({ "portMappings": [{ "hostPort": 1, "containerPort": 65536 }] }),
            7,
            "runtimeConfig.portMappings[0].containerPort: 65536",
        ),
        (
            |conf| {
                conf["runtimeConfig"] =
                    json!({ "portMappings": [{ "hostPort": 1, "containerPort": 2, "protocol": "icmp" }] });
            },
            7,
            "runtimeConfig.portMappings[0].protocol: \"icmp\"",
        ),
        (
            |conf| {
                conf["runtimeConfig"] =
                    json!({ "portMappings": [{ "hostPort": 1, "containerPort": 2, "hostIP": "::1" }] });
            },
            2,
            "runtimeConfig.portMappings[0].hostIP=::1",
        ),
        (|conf| conf["prevResult"] = json!({ "ips": [{ "address": "x" }] }), 7, "prevResult.ips[0].address"),
    ];
    for (change, code, begin) in wrong {
        let error = parse(change).expect_err(begin);
        assert_eq!(error.code(), *code, "{error}");
        assert!(error.to_string().starts_with(begin), "expected {begin}, found {error}");
    }
}

#[test]
fn what_is_no_json_is_said() {
    for text in ["", " \n", "{", "[1]x", "nonsense"] {
        let error = NetConf::parse(text.as_bytes(), &Args::default()).unwrap_err();
        assert_eq!(error.code(), 6, "{text:?}: {error}");
    }
}

#[test]
fn a_bandwidth_of_nothing_is_none() {
    for bandwidth in [json!(null), json!({}), json!({ "ingressRate": 0, "egressRate": 0 })] {
        parse(|conf| conf["runtimeConfig"] = json!({ "bandwidth": bandwidth })).unwrap();
    }
}

#[test]
fn del_needs_no_more_than_the_network() {
    let text = conf(|conf| {
        conf["mtu"] = json!("big");
        conf["capabilities"] = json!({ "bandwidth": true });
        conf["ipam"]["ranges"] = json!("none");
    });
    assert_eq!(Network::parse(text.to_string().as_bytes()).unwrap().name, "pods");
}

use serde_json::json;

use super::*;

fn spec(value: Value) -> ServiceSpec {
    serde_json::from_value(value).unwrap()
}

fn shown(resolved: Result<Resolved, Findings>) -> String {
    match resolved {
        Ok(resolved) => {
            let pairs = resolved.families.iter().zip(&resolved.addresses);
            let address = |address: &Option<IpAddr>| address.map_or("any".to_owned(), |address| address.to_string());
            let pairs: Vec<String> =
                pairs.map(|(family, wanted)| format!("{} {}", family.name(), address(wanted))).collect();
            let headless = if resolved.is_headless { " headless" } else { "" };
            format!("{}{headless}: {}", resolved.policy, pairs.join(", "))
        }
        Err(findings) => findings.into_result("x").unwrap_err().findings[0].to_string(),
    }
}

const DUAL: &str = "10.96.0.0/16,fd00:96::/112";
const V6_FIRST: &str = "fd00:96::/112,10.96.0.0/16";
const V4: &str = "10.96.0.0/16";

#[test]
fn new_services_get_the_families_they_ask_for() {
    let headless = json!({"clusterIP": "None", "selector": {"a": "b"}});
    for (name, cidrs, spec_json, expected) in [
        ("default", DUAL, json!({}), "SingleStack: IPv4 any"),
        ("default of another order", V6_FIRST, json!({}), "SingleStack: IPv6 any"),
        ("second family", DUAL, json!({"ipFamilies": ["IPv6"]}), "SingleStack: IPv6 any"),
        ("address says family", DUAL, json!({"clusterIP": "fd00:96::9"}), "SingleStack: IPv6 fd00:96::9"),
        ("prefer dual", DUAL, json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack: IPv4 any, IPv6 any"),
        ("prefer dual, one CIDR", V4, json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack: IPv4 any"),
        ("require dual", DUAL, json!({"ipFamilyPolicy": "RequireDualStack"}), "RequireDualStack: IPv4 any, IPv6 any"),
        (
            "require dual, one CIDR",
            V4,
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: \"RequireDualStack\": must be SingleStack or PreferDualStack: the service CIDR 10.96.0.0/16 has one family",
        ),
        ("two families", DUAL, json!({"ipFamilies": ["IPv6", "IPv4"]}), "RequireDualStack: IPv6 any, IPv4 any"),
        (
            "two addresses",
            DUAL,
            json!({"clusterIPs": ["10.96.0.9", "fd00:96::9"]}),
            "RequireDualStack: IPv4 10.96.0.9, IPv6 fd00:96::9",
        ),
        (
            "one address of two",
            DUAL,
            json!({"clusterIP": "10.96.0.9", "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack: IPv4 10.96.0.9, IPv6 any",
        ),
        (
            "no such CIDR",
            V4,
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: \"IPv6\": must be a family of the service CIDRs 10.96.0.0/16",
        ),
        ("headless", DUAL, headless, "SingleStack headless: IPv4 any"),
        (
            "headless by hand may have a family without a CIDR",
            V4,
            json!({"clusterIP": "None", "ipFamilies": ["IPv6"]}),
            "SingleStack headless: IPv6 any",
        ),
    ] {
        assert_eq!(shown(resolve(&spec(spec_json), None, &cidrs.parse().unwrap())), expected, "{name}");
    }
}

#[test]
fn what_an_update_does_not_mention_stays() {
    let single = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"});
    let dual = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"});
    let headless =
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"});
    for (name, old, new, expected) in [
        ("nothing", &single, json!({}), "SingleStack: IPv4 10.96.0.9"),
        ("nothing, dual", &dual, json!({}), "PreferDualStack: IPv4 10.96.0.9, IPv6 fd00:96::9"),
        ("nothing, headless", &headless, json!({"selector": {"a": "b"}}), "SingleStack headless: IPv4 any"),
        ("first address", &dual, json!({"clusterIP": "10.96.0.9"}), "PreferDualStack: IPv4 10.96.0.9, IPv6 fd00:96::9"),
        ("to dual", &single, json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack: IPv4 10.96.0.9, IPv6 any"),
        ("to single", &dual, json!({"ipFamilyPolicy": "SingleStack"}), "SingleStack: IPv4 10.96.0.9"),
        (
            "another address",
            &single,
            json!({"clusterIP": "10.96.0.10"}),
            "spec.clusterIP: \"10.96.0.10\": must stay 10.96.0.9: it can't be changed, delete the Service first",
        ),
        (
            "to headless",
            &single,
            json!({"clusterIP": "None"}),
            "spec.clusterIP: \"None\": must stay 10.96.0.9: it can't be changed, delete the Service first",
        ),
        (
            "another first family",
            &single,
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: \"IPv6\": must be IPv4, the family of the ClusterIP 10.96.0.9",
        ),
    ] {
        let old = spec(old.clone());
        assert_eq!(shown(resolve(&spec(new), Some(&old), &DUAL.parse().unwrap())), expected, "{name}");
    }
}

use serde_json::json;

use super::*;
use crate::registry::service::update;

/// What becomes of a spec that replaces another, or none.
fn resolved(new: Value, old: Option<&Value>, cidrs: &str) -> String {
    let object = |spec: &Value| json!({"spec": spec}).as_object().unwrap().clone();
    let mut new = object(&new);
    update::carry_over(&mut new, old.map(object).as_ref());
    let new: ServiceSpec = serde_json::from_value(new.remove("spec").unwrap()).unwrap();
    let old: Option<ServiceSpec> = old.map(|old| serde_json::from_value(old.clone()).unwrap());
    shown(resolve(&new, old.as_ref(), &cidrs.parse().unwrap()))
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
        (
            "two families",
            DUAL,
            json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack: IPv6 any, IPv4 any",
        ),
        (
            "two addresses",
            DUAL,
            json!({"clusterIPs": ["10.96.0.9", "fd00:96::9"], "ipFamilyPolicy": "RequireDualStack"}),
            "RequireDualStack: IPv4 10.96.0.9, IPv6 fd00:96::9",
        ),
        (
            "two families without a policy",
            DUAL,
            json!({"ipFamilies": ["IPv6", "IPv4"]}),
            "spec.ipFamilyPolicy: \"SingleStack\": must be PreferDualStack or RequireDualStack where spec.ipFamilies has two entries",
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
            json!({"clusterIP": "None", "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}),
            "SingleStack headless: IPv6 any",
        ),
        (
            "headless by hand has both",
            V4,
            json!({"clusterIP": "None"}),
            "RequireDualStack headless: IPv4 any, IPv6 any",
        ),
    ] {
        assert_eq!(resolved(spec_json, None, cidrs), expected, "{name}");
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
            "spec.clusterIPs[0]: \"10.96.0.10\": must stay 10.96.0.9: it can't be changed, delete the Service first",
        ),
        (
            "to headless",
            &single,
            json!({"clusterIP": "None"}),
            "spec.clusterIPs[0]: \"None\": must stay 10.96.0.9: it can't be changed, delete the Service first",
        ),
    ] {
        assert_eq!(resolved(new, Some(old), DUAL), expected, "{name}");
    }
}

#[test]
fn a_second_range_that_comes_later_changes_only_who_is_touched() {
    let preferring = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "PreferDualStack"});
    let both = json!({"clusterIPs": ["10.96.0.9", "fd00:96::9"], "ipFamilyPolicy": "PreferDualStack"});
    for (name, new, expected) in [
        ("untouched", json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack: IPv4 10.96.0.9"),
        ("unmentioned", json!({}), "PreferDualStack: IPv4 10.96.0.9"),
        ("required", json!({"ipFamilyPolicy": "RequireDualStack"}), "RequireDualStack: IPv4 10.96.0.9, IPv6 any"),
        ("a family more", json!({"ipFamilies": ["IPv4", "IPv6"]}), "PreferDualStack: IPv4 10.96.0.9, IPv6 any"),
        ("an address more", both, "PreferDualStack: IPv4 10.96.0.9, IPv6 fd00:96::9"),
    ] {
        assert_eq!(resolved(new, Some(&preferring), DUAL), expected, "{name}");
    }
}

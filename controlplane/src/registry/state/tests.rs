use super::*;

/// A state with the namespace `default`, and what writes come to.
struct Fixture {
    state: State,
}

impl Fixture {
    fn new() -> Self {
        Self::with_cidrs("10.96.0.0/24,fd00:96::/120")
    }

    fn with_cidrs(cidrs: &str) -> Self {
        let allocations = Allocations::new(cidrs.parse().unwrap(), 30_000..=30_003);
        let mut fixture =
            Fixture { state: State::restore(0, Vec::new(), allocations, ExternalIpCidrs::default()).unwrap() };
        fixture.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})).unwrap();
        fixture
    }

    /// As the writer does it: a refused write leaves no trace.
    fn apply(&mut self, manifest: Value) -> Result<(Outcome, Value), String> {
        let manifest = Manifest::parse(manifest.to_string().as_bytes()).map_err(|error| error.to_string())?;
        let mut state = self.state.clone();
        let mut changes = Vec::new();
        let applied = state.apply(manifest, Timestamp::UNIX_EPOCH, &mut changes).map_err(|error| error.to_string())?;
        assert_eq!(state.revision - self.state.revision, u64::try_from(changes.len()).unwrap());
        self.state = state;
        Ok((applied.outcome, serde_json::from_slice(&applied.record.json).unwrap()))
    }

    fn service(&mut self, name: &str, spec: Value) -> Result<(Outcome, Value), String> {
        self.apply(service(name, spec)).map(|(outcome, object)| (outcome, object["spec"].clone()))
    }

    fn delete(&mut self, key: Key) -> Result<Vec<String>, String> {
        let mut state = self.state.clone();
        let mut changes = Vec::new();
        state.delete(&key, 0, &mut changes).map_err(|error| error.to_string())?;
        self.state = state;
        Ok(changes.iter().map(|change| change.key().to_string()).collect())
    }
}

fn service(name: &str, mut spec: Value) -> Value {
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

#[test]
fn objects_are_made_changed_and_left_alone() {
    let mut fixture = Fixture::new();
    let (outcome, made) = fixture.apply(service("web", json!({}))).unwrap();
    assert_eq!(outcome, Outcome::Created);
    assert_eq!(made["metadata"]["resourceVersion"], "2");
    assert_eq!(made["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
    assert_eq!(made["status"], json!({"loadBalancer": {}}));
    let uid = made["metadata"]["uid"].clone();

    assert_eq!(fixture.apply(service("web", json!({}))).unwrap(), (Outcome::Unchanged, made.clone()));
    assert_eq!(fixture.apply(made.clone()).unwrap(), (Outcome::Unchanged, made.clone()));
    assert_eq!(fixture.state.revision, 2);

    let (outcome, changed) = fixture.apply(service("web", json!({"ports": [{"port": 81}]}))).unwrap();
    assert_eq!(outcome, Outcome::Configured);
    assert_eq!(changed["metadata"]["resourceVersion"], "3");
    assert_eq!(changed["metadata"]["uid"], uid);
    assert_eq!(changed["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert_eq!(
        fixture.apply(made).unwrap_err(),
        "service default/web was to be written at resourceVersion 2, but it is at 3; read it again and retry"
    );
}

#[test]
fn a_write_meant_for_another_object_is_refused() {
    let mut fixture = Fixture::new();
    let mut manifest = service("web", json!({}));
    manifest["metadata"]["resourceVersion"] = "7".into();
    assert_eq!(
        fixture.apply(manifest).unwrap_err(),
        "service default/web was to be written at resourceVersion 7, but it does not exist; read it again and retry"
    );
    let mut manifest = service("web", json!({}));
    manifest["metadata"]["uid"] = "u".into();
    // A uid from elsewhere does not keep an object from being made.
    fixture.apply(manifest.clone()).unwrap();
    let refused = fixture.apply(manifest).unwrap_err();
    assert!(refused.starts_with("service default/web was to be written with uid u, but has "), "{refused}");
}

#[test]
fn status_stays_unless_it_is_given() {
    let mut fixture = Fixture::new();
    let balancer = || service("web", json!({"type": "LoadBalancer"}));
    let mut manifest = balancer();
    let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}});
    manifest["status"] = status.clone();
    assert_eq!(fixture.apply(manifest).unwrap().1["status"], status);
    assert_eq!(fixture.apply(balancer()).unwrap().0, Outcome::Unchanged);
    let mut manifest = balancer();
    manifest["status"] = json!({});
    assert_eq!(fixture.apply(manifest).unwrap().1["status"], json!({}));
}

#[test]
fn namespaces_come_first_and_take_all_with_them() {
    let mut fixture = Fixture::new();
    let mut manifest = service("web", json!({"clusterIP": "10.96.0.9"}));
    manifest["metadata"]["namespace"] = "shop".into();
    assert_eq!(
        fixture.apply(manifest.clone()).unwrap_err(),
        "service shop/web can't be written: namespace \"shop\" does not exist; apply a Namespace of that name first"
    );
    fixture.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).unwrap();
    fixture.apply(manifest).unwrap();
    fixture.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop-b"}})).unwrap();
    assert_eq!(fixture.delete(Key::namespace("shop")).unwrap(), ["service shop/web", "namespace shop"]);
    assert!(fixture.state.objects.contains_key(&Key::namespace("shop-b")));
    assert!(fixture.delete(Key::namespace("default")).is_err());
    // The address is free again.
    fixture.service("other", json!({"clusterIP": "10.96.0.9"})).unwrap();
}

#[test]
fn cluster_ips_are_given_once_kept_and_released() {
    let mut fixture = Fixture::new();
    let (_, spec) = fixture.service("web", json!({"clusterIP": "10.96.0.9"})).unwrap();
    assert_eq!(spec["clusterIPs"], json!(["10.96.0.9"]));
    assert_eq!(
        fixture.service("other", json!({"clusterIP": "10.96.0.9"})).unwrap_err(),
        "service default/other is invalid: spec.clusterIPs[0]: \"10.96.0.9\": is held by service default/web"
    );
    assert_eq!(
        fixture.service("other", json!({"clusterIP": "10.97.0.9"})).unwrap_err(),
        "service default/other is invalid: spec.clusterIPs[0]: \"10.97.0.9\": must be an address for Services in 10.96.0.0/24"
    );
    let (_, spec) = fixture.service("web", json!({"ipFamilyPolicy": "PreferDualStack"})).unwrap();
    assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
    let second = spec["clusterIPs"][1].as_str().unwrap().to_owned();
    fixture.service("web", json!({"ipFamilyPolicy": "SingleStack"})).unwrap();
    let (_, spec) = fixture.service("six", json!({"clusterIP": second})).unwrap();
    assert_eq!(spec["ipFamilies"], json!(["IPv6"]));

    let (_, spec) = fixture.service("web", json!({"type": "ExternalName", "externalName": "a.b"})).unwrap();
    assert!(spec.get("clusterIP").is_none() && spec.get("clusterIPs").is_none());
    fixture.service("other", json!({"clusterIP": "10.96.0.9"})).unwrap();
    let (_, spec) = fixture.service("web", json!({})).unwrap();
    assert_ne!(spec["clusterIP"], "10.96.0.9");
    fixture.delete(Key::service("default", "other")).unwrap();
    fixture.service("third", json!({"clusterIP": "10.96.0.9"})).unwrap();
    let (_, spec) = fixture.service("headless", json!({"clusterIP": "None"})).unwrap();
    assert_eq!(spec["clusterIPs"], json!(["None"]));
}

#[test]
fn a_used_up_range_says_so_and_harms_nothing() {
    let mut fixture = Fixture::with_cidrs("10.96.0.0/30");
    fixture.service("a", json!({})).unwrap();
    fixture.service("b", json!({})).unwrap();
    assert_eq!(
        fixture.service("c", json!({})).unwrap_err(),
        "service default/c: no free IPv4 ClusterIP is left in 10.96.0.0/30"
    );
    fixture.delete(Key::service("default", "a")).unwrap();
    fixture.service("c", json!({})).unwrap();
}

#[test]
fn a_refused_write_releases_nothing() {
    let mut fixture = Fixture::new();
    fixture.service("web", json!({"clusterIP": "10.96.0.9"})).unwrap();
    fixture.service("np", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000}]})).unwrap();
    let refused = fixture.service("web", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000}]}));
    assert_eq!(
        refused.unwrap_err(),
        "service default/web is invalid: spec.ports[0].nodePort: 30000: is held by service default/np"
    );
    assert!(fixture.service("other", json!({"clusterIP": "10.96.0.9"})).is_err());
}

#[test]
fn node_ports_are_given_once_kept_and_released() {
    let mut fixture = Fixture::new();
    let dns = json!([{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]);
    let (_, spec) = fixture.service("dns", json!({"type": "NodePort", "ports": dns})).unwrap();
    let given = spec["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30_000..=30_003).contains(&given));
    assert_eq!(spec["ports"][1]["nodePort"], given);
    assert_eq!(fixture.service("dns", json!({"type": "NodePort", "ports": dns})).unwrap().0, Outcome::Unchanged);

    let refused = fixture.service("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}));
    assert_eq!(
        refused.unwrap_err(),
        "service default/a is invalid: spec.ports[0].nodePort: 80: must be in the node port range 30000-30003"
    );
    let balancer = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let (_, spec) = fixture.service("lb", balancer.clone()).unwrap();
    let health = spec["healthCheckNodePort"].as_u64().unwrap();
    assert!((30_000..=30_003).contains(&health) && health != given);
    assert_eq!(fixture.service("lb", balancer).unwrap().1, spec);
    fixture.service("np", json!({"type": "NodePort"})).unwrap();
    assert_eq!(
        fixture.service("none", json!({"type": "NodePort"})).unwrap_err(),
        "service default/none: no free node port is left in 30000-30003"
    );
    let without = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    assert!(fixture.service("without", without).unwrap().1["ports"][0].get("nodePort").is_none());
    let (_, spec) = fixture.service("dns", json!({"ports": dns})).unwrap();
    assert!(spec["ports"][0].get("nodePort").is_none());
    fixture.service("none", json!({"type": "NodePort"})).unwrap();
}

#[test]
fn allocations_are_found_again_in_the_store() {
    let mut fixture = Fixture::new();
    fixture
        .service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30001}]}),
        )
        .unwrap();
    let records = fixture.state.objects.values().map(|record| (**record).clone()).collect();
    let allocations = Allocations::new("10.96.0.0/24".parse().unwrap(), 30_000..=30_003);
    let state = State::restore(fixture.state.revision, records, allocations, ExternalIpCidrs::default()).unwrap();
    let mut fixture = Fixture { state };
    assert!(fixture.service("other", json!({"clusterIP": "10.96.0.9"})).is_err());
    assert!(fixture.service("other", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]})).is_err());
}

#[test]
fn the_address_type_of_a_slice_stays() {
    let mut fixture = Fixture::new();
    let slice = |address_type: &str| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"},
               "addressType": address_type, "endpoints": []})
    };
    fixture.apply(slice("IPv4")).unwrap();
    assert_eq!(
        fixture.apply(slice("IPv6")).unwrap_err(),
        "endpointslice default/web-1 is invalid: addressType: \"IPv6\": must stay \"IPv4\": it can't be changed, delete the slice first"
    );
}

#[test]
fn external_ips_need_a_range_that_allows_them() {
    let mut fixture = Fixture::new();
    let with = |ips: &[&str]| json!({"externalIPs": ips});
    assert_eq!(
        fixture.service("web", with(&["192.0.2.1", "2001:db8::1"])).unwrap_err(),
        "service default/web is invalid: \
         spec.externalIPs[0]: \"192.0.2.1\": is not allowed: the control plane was started without --allow-external-ips; \
         spec.externalIPs[1]: \"2001:db8::1\": is not allowed: the control plane was started without --allow-external-ips"
    );
    fixture.service("web", with(&[])).unwrap();

    fixture.state.external_ips = "192.0.2.0/24,2001:db8::/64".parse().unwrap();
    fixture.service("web", with(&["192.0.2.1", "2001:db8::1"])).unwrap();
    assert_eq!(
        fixture.service("web", with(&["192.0.2.1", "198.51.100.1"])).unwrap_err(),
        "service default/web is invalid: spec.externalIPs[1]: \"198.51.100.1\": is not allowed: \
         must be within the control plane's --allow-external-ips 192.0.2.0/24,2001:db8::/64"
    );
}

#[test]
fn external_ips_that_a_service_has_stay_allowed() {
    let mut fixture = Fixture::new();
    fixture.state.external_ips = "192.0.2.0/24,2001:db8::/64".parse().unwrap();
    fixture.service("web", json!({"externalIPs": ["192.0.2.1", "2001:db8::1"]})).unwrap();
    fixture.state.external_ips = ExternalIpCidrs::default();
    // Another change, another order, another spelling, one less.
    let ports = json!([{"port": 81}]);
    fixture.service("web", json!({"externalIPs": ["2001:db8:0::1", "192.0.2.1"], "ports": ports})).unwrap();
    fixture.service("web", json!({"externalIPs": ["192.0.2.1"]})).unwrap();
    for (name, ips) in [("web", ["192.0.2.1", "192.0.2.2"]), ("web", ["192.0.2.1", "2001:db8::1"])] {
        let error = fixture.service(name, json!({"externalIPs": ips})).unwrap_err();
        assert!(error.contains(&format!("spec.externalIPs[1]: {:?}: is not allowed", ips[1])), "{error}");
    }
    // What one Service has is no leave for another one.
    fixture.service("other", json!({"externalIPs": ["192.0.2.1"]})).unwrap_err();
}

#[test]
fn an_address_stays_when_its_range_is_gone() {
    let mut fixture = Fixture::new();
    let dual = json!({"ipFamilyPolicy": "PreferDualStack"});
    let (_, made) = fixture.service("web", dual.clone()).unwrap();
    let records = fixture.state.objects.values().map(|record| (**record).clone()).collect();
    let allocations = Allocations::new("10.97.0.0/24".parse().unwrap(), 30_000..=30_003);
    let state = State::restore(fixture.state.revision, records, allocations, ExternalIpCidrs::default()).unwrap();
    let mut fixture = Fixture { state };
    assert_eq!(fixture.service("web", dual).unwrap(), (Outcome::Unchanged, made.clone()));
    let changed = json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 81}]});
    assert_eq!(fixture.service("web", changed).unwrap().1["clusterIPs"], made["clusterIPs"]);
}

#[test]
fn another_spelling_of_an_address_is_no_change() {
    let mut fixture = Fixture::new();
    let spelled = json!({"clusterIP": "fd00:0096:0::0009"});
    let (_, made) = fixture.service("web", spelled.clone()).unwrap();
    assert_eq!(made["clusterIPs"], json!(["fd00:96::9"]));
    assert_eq!(fixture.service("web", spelled).unwrap().0, Outcome::Unchanged);
}

use serde_json::{Value, json};

use super::*;

/// An index that changes are made to.
#[derive(Default)]
struct World {
    index: Index,
    revision: u64,
}

impl World {
    fn apply(&mut self, key: Key, object: &Value) -> Vec<String> {
        self.revision += 1;
        let json = object.to_string().into_bytes().into();
        let touched = self.index.apply(&Change::Apply(Record { key, revision: self.revision, json }));
        touched.into_iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect()
    }

    fn service(&mut self, name: &str, selector: Value) -> Vec<String> {
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"selector": selector}});
        self.apply(Key::service("shop", name), &object)
    }

    fn pod(&mut self, namespace: &str, name: &str, labels: Value, status: Value) -> Vec<String> {
        let object = json!({"metadata": {"namespace": namespace, "name": name, "labels": labels},
                            "spec": {"nodeName": "edge-1", "containers": []}, "status": status});
        self.apply(Key::pod(namespace, name), &object)
    }

    fn node(&mut self, labels: Value) -> Vec<String> {
        self.apply(Key::node("edge-1"), &json!({"metadata": {"name": "edge-1", "labels": labels}}))
    }

    fn slice(&mut self, name: &str, labels: Value) -> Vec<String> {
        let object = json!({"metadata": {"namespace": "shop", "name": name, "labels": labels}, "addressType": "IPv4"});
        self.apply(Key::endpoint_slice("shop", name), &object)
    }

    fn delete(&mut self, key: Key) -> Vec<String> {
        self.revision += 1;
        let touched = self.index.apply(&Change::Delete { key, revision: self.revision });
        touched.into_iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect()
    }

    /// The pods that a Service selects, with their zones.
    fn pods(&self, service: &str) -> Vec<String> {
        let input = self.index.input(&("shop".to_owned(), service.to_owned()));
        input.pods.iter().map(|(pod, zone)| format!("{} {}", pod.name, zone.unwrap_or("-"))).collect()
    }
}

fn address(ip: &str) -> Value {
    json!({"podIP": ip})
}

#[test]
fn a_pod_touches_the_services_that_select_it_before_and_after() {
    let none: [&str; 0] = [];
    let mut world = World::default();
    world.service("web", json!({"app": "web"}));
    world.service("stable", json!({"app": "web", "track": "stable"}));
    world.service("db", json!({"app": "db"}));
    assert_eq!(world.pod("shop", "a", json!({"app": "web"}), address("10.0.0.1")), ["shop/web"]);
    assert_eq!(world.pod("other", "a", json!({"app": "web"}), address("10.0.0.1")), none);
    let both = json!({"app": "web", "track": "stable"});
    assert_eq!(world.pod("shop", "a", both.clone(), address("10.0.0.1")), ["shop/stable", "shop/web"]);
    assert_eq!((world.pods("web"), world.pods("stable")), (vec!["a -".to_owned()], vec!["a -".to_owned()]));
    // What slices do not tell of is no change.
    let busy = json!({"podIP": "10.0.0.1", "startTime": "2026-01-01T00:00:00Z"});
    assert_eq!(world.pod("shop", "a", both, busy), none);
    assert_eq!(
        world.pod("shop", "a", json!({"app": "db"}), address("10.0.0.1")),
        ["shop/db", "shop/stable", "shop/web"]
    );
    assert_eq!((world.pods("web"), world.pods("db")), (vec![], vec!["a -".to_owned()]));
    assert_eq!(world.delete(Key::pod("shop", "a")), ["shop/db"]);
    assert_eq!(world.pods("db"), none);
}

#[test]
fn a_service_touches_itself_where_its_slices_depend_on_it() {
    let none: [&str; 0] = [];
    let mut world = World::default();
    world.pod("shop", "a", json!({"app": "web"}), address("10.0.0.1"));
    world.pod("shop", "b", json!({"app": "db", "track": "stable"}), address("10.0.0.2"));
    assert_eq!(world.service("web", json!({"app": "web"})), ["shop/web"]);
    assert_eq!(world.pods("web"), ["a -"]);
    assert_eq!(world.service("web", json!({"app": "web"})), none);
    assert_eq!(world.service("web", json!({"track": "stable"})), ["shop/web"]);
    assert_eq!(world.pods("web"), ["b -"]);
    // The old selector finds it no more.
    assert_eq!(world.pod("shop", "a", json!({"app": "web"}), address("10.0.0.3")), none);
    assert_eq!(world.service("web", json!({})), ["shop/web"]);
    assert!(world.index.input(&("shop".to_owned(), "web".to_owned())).service.is_none());
    assert_eq!(world.delete(Key::service("shop", "web")), none);
    assert!(world.index.selecting.0.is_empty());
}

#[test]
fn a_node_touches_the_services_of_its_pods_if_its_zone_changes() {
    let none: [&str; 0] = [];
    let mut world = World::default();
    world.service("web", json!({"app": "web"}));
    world.service("db", json!({"app": "db"}));
    world.pod("shop", "a", json!({"app": "web"}), address("10.0.0.1"));
    assert_eq!(world.node(json!({ZONE: "z1"})), ["shop/web"]);
    assert_eq!(world.pods("web"), ["a z1"]);
    assert_eq!(world.node(json!({ZONE: "z1", "more": "labels"})), none);
    assert_eq!(world.node(json!({ZONE: "z2"})), ["shop/web"]);
    assert_eq!(world.delete(Key::node("edge-1")), ["shop/web"]);
    assert_eq!(world.pods("web"), ["a -"]);
}

#[test]
fn only_slices_of_ours_touch_their_service() {
    let none: [&str; 0] = [];
    let mut world = World::default();
    let labels = |service: &str| json!({SERVICE_NAME: service, MANAGED_BY: MANAGER});
    assert_eq!(world.slice("web-1", json!({SERVICE_NAME: "web"})), none);
    assert_eq!(world.slice("web-1", json!({SERVICE_NAME: "web", MANAGED_BY: "somebody"})), none);
    assert_eq!(world.slice("web-1", labels("web")), ["shop/web"]);
    assert_eq!(world.index.slice_revision(&("shop".to_owned(), "web-1".to_owned())), Some(3));
    assert_eq!(world.slice("web-1", labels("db")), ["shop/db", "shop/web"]);
    // A Service that does not exist has slices to lose.
    assert_eq!(world.index.services(), [("shop".to_owned(), "db".to_owned())].into());
    assert_eq!(world.slice("web-1", json!({MANAGED_BY: MANAGER})), ["shop/", "shop/db"]);
    assert_eq!(world.delete(Key::endpoint_slice("shop", "web-1")), ["shop/"]);
    assert!(world.index.services().is_empty());
}

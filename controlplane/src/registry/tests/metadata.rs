use super::*;

fn node(metadata: Value) -> Value {
    merge(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}), json!({"metadata": metadata}))
}

fn named(kind: &str, name: &str) -> Value {
    let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    match kind {
        "EndpointSlice" => merge(object, json!({"apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4"})),
        "Pod" => merge(object, json!({"spec": {"containers": []}})),
        "Service" => merge(object, json!({"spec": {"ports": [{"port": 80}]}})),
        _ => object,
    }
}

fn owner(change: Value) -> Value {
    merge(json!({"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "u"}), change)
}

const LABEL: &str =
    "must be at most 63 lower-case letters, digits or '-', and start and end with a letter or digit (DNS-1123 label)";
const SUBDOMAIN: &str = "must be at most 253 lower-case letters, digits, '-' or '.', and start and end with a letter or \
                         digit (DNS-1123 subdomain)";

#[tokio::test]
async fn names_have_the_form_of_their_kind() {
    let long = "a".repeat(64);
    let mut rows = Vec::new();
    for (kind, name) in [
        ("Service", "web"),
        ("Service", "0web"),
        ("Namespace", "0a"),
        ("Node", "a.b"),
        ("Node", long.as_str()),
        ("Pod", "a.b"),
        ("EndpointSlice", "a.b"),
    ] {
        rows.push((name, Value::Null, named(kind, name), vec![]));
    }
    let expected = |name: &str, form: &str| format!("metadata.name: {name:?}: {form}");
    let bad: Vec<_> = [
        ("Service", "a.b", LABEL),
        ("Service", "Web", LABEL),
        ("Service", "-a", LABEL),
        ("Service", &long, LABEL),
        ("Namespace", "a.b", LABEL),
        ("Node", "A", SUBDOMAIN),
        ("Node", "a..b", SUBDOMAIN),
        ("Pod", "a_b", SUBDOMAIN),
        ("EndpointSlice", "a-", SUBDOMAIN),
    ]
    .map(|(kind, name, form)| (kind, name, expected(name, form)))
    .into();
    for (kind, name, expected) in &bad {
        rows.push((name, Value::Null, named(kind, name), vec![expected.as_str()]));
    }
    check(options(), rows).await;
}

#[tokio::test]
async fn metadata_is_checked() {
    let long = "v".repeat(64);
    let large = "x".repeat(200_000);
    let key = "must be a name of at most 63 letters, digits, '-', '_' or '.', after a DNS subdomain and '/' if there is a prefix";
    let value = "must be at most 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit";
    let [space_key, slash_key] =
        [("labels", "a b"), ("annotations", "a/b/c")].map(|(map, word)| format!("metadata.{map}: {word:?}: {key}"));
    let [space, too_long] = ["e f", &long].map(|word| format!("metadata.labels[d]: {word:?}: {value}"));
    check(
        options(),
        vec![
            (
                "good",
                Value::Null,
                node(json!({
                    "labels": {"example.org/a": "", "A": "B.c_d-e"}, "annotations": {"Example.org/A": "anything at all"},
                    "ownerReferences": [owner(json!({"controller": true})), owner(json!({}))],
                    "finalizers": ["example.org/f", "orphan", "foregroundDeletion", "kubernetes"], "generation": 0,
                })),
                vec![],
            ),
            ("label key", Value::Null, node(json!({"labels": {"a b": "c"}})), vec![&space_key]),
            ("label value", Value::Null, node(json!({"labels": {"d": "e f"}})), vec![&space]),
            ("long label value", Value::Null, node(json!({"labels": {"d": long}})), vec![&too_long]),
            ("annotation key", Value::Null, node(json!({"annotations": {"a/b/c": ""}})), vec![&slash_key]),
            (
                "annotations together",
                Value::Null,
                node(json!({"annotations": {"a": large, "b": large}})),
                vec!["metadata.annotations: must be at most 262144 bytes together; they are 400002"],
            ),
            (
                "owners",
                Value::Null,
                node(json!({"ownerReferences": [
                    owner(json!({"apiVersion": "", "uid": ""})), owner(json!({"kind": "", "name": ""})), owner(json!({"kind": "Event"})),
                    owner(json!({"controller": true})), owner(json!({"controller": true})),
                ]})),
                vec![
                    "metadata.ownerReferences[0].apiVersion: is required",
                    "metadata.ownerReferences[0].uid: is required",
                    "metadata.ownerReferences[1].kind: is required",
                    "metadata.ownerReferences[1].name: is required",
                    "metadata.ownerReferences[2]: \"v1 Event\": must not be an Event: those own nothing",
                    "metadata.ownerReferences[4].controller: true: must be the only owner with controller true; web has it as well",
                ],
            ),
            (
                "finalizer without a prefix",
                Value::Null,
                node(json!({"finalizers": ["mine"], "generation": -1})),
                vec![
                    "metadata.generation: -1: must not be negative",
                    "metadata.finalizers[0]: \"mine\": must have a prefix, such as example.org/name",
                ],
            ),
            (
                "phase of a Namespace",
                Value::Null,
                merge(named("Namespace", "shop"), json!({"status": {"phase": "Terminating"}})),
                vec!["status.phase: \"Terminating\": must be \"Active\": Namespaces are deleted by deleting them, and go at once"],
            ),
        ],
    )
    .await;
}

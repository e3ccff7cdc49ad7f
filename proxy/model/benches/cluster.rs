//! The cost of one change in a large cluster, and the memory that such a cluster takes.
//!
//! 50,000 Services of ten endpoints each: `cargo bench -p tollgate-model`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tollgate_model::diff::diff;
use tollgate_model::endpoint::EndpointSlice;
use tollgate_model::node::Node;
use tollgate_model::object::Kind;
use tollgate_model::service::Service;
use tollgate_model::snapshot::Snapshot;
use tollgate_model::store::{Event, Store, StoreConfig};

const SERVICES: usize = 50_000;
const ENDPOINTS_EACH: usize = 10;
const NODES: usize = 1_000;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static HELD: AtomicIsize = AtomicIsize::new(0);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count of the bytes that are held.
struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size().cast_signed(), Ordering::Relaxed);
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn main() {
    let before = HELD.load(Ordering::Relaxed);
    let started = std::time::Instant::now();
    let (store, snapshot) = cluster();
    let built = started.elapsed();
    let held = HELD.load(Ordering::Relaxed) - before;
    assert_eq!(snapshot.service_ports.len(), SERVICES);
    let endpoints = SERVICES * ENDPOINTS_EACH;
    println!(
        "memory: {SERVICES} Services and {endpoints} endpoints, with their snapshot, hold {} MiB ({} bytes an endpoint)",
        held >> 20,
        held.unsigned_abs() / endpoints,
    );
    println!("start: from Kubernetes objects to the first snapshot in {built:.2?}");
    drop((store, snapshot));
    divan::main();
}

/// The objects of a large cluster, and their first snapshot.
fn cluster() -> (Store, Snapshot) {
    let mut store = Store::new(StoreConfig { node_name: node_name(0).into(), ..StoreConfig::default() });
    for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
        store.apply(Event::Init(kind));
    }
    store.apply(Node::try_from(&node()).into());
    for i in 0..SERVICES {
        store.apply(Service::try_from(&service(i)).into());
        store.apply(EndpointSlice::try_from(&slice(i, 0)).into());
    }
    for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
        store.apply(Event::InitDone(kind));
    }
    let snapshot = store.snapshot().expect("the lists are complete");
    (store, snapshot)
}

/// One slice changes: from the Kubernetes object to what the backend is told.
#[divan::bench(sample_count = 2000)]
fn change_one_endpoint_slice(bencher: divan::Bencher<'_, '_>) {
    let (mut store, mut old) = cluster();
    let mut round = 0;
    bencher
        .with_inputs(|| {
            round += 1;
            slice(round * 7919 % SERVICES, 1 + round / SERVICES)
        })
        .bench_local_values(|object| {
            store.apply(EndpointSlice::try_from(&object).into());
            let new = store.snapshot().expect("the lists are complete");
            let changes = diff(&old.service_ports, &new.service_ports).map(black_box).count();
            assert_eq!(changes, 1);
            old = new;
        });
}

/// This node changes its zone: every Service is resolved anew.
#[divan::bench(sample_count = 5)]
fn resolve_every_service(bencher: divan::Bencher<'_, '_>) {
    let (mut store, _) = cluster();
    let mut round = 0;
    bencher
        .with_inputs(|| {
            round += 1;
            let mut node = node();
            let labels = node.metadata.labels.get_or_insert_default();
            labels.insert("topology.kubernetes.io/zone".into(), format!("zone-{round}"));
            node
        })
        .bench_local_values(|node| {
            store.apply(Node::try_from(&node).into());
            store.snapshot().expect("the lists are complete")
        });
}

/// The same objects are listed again, as after a lost watch: no change.
#[divan::bench(sample_count = 3)]
fn relist(bencher: divan::Bencher<'_, '_>) {
    let (mut store, old) = cluster();
    bencher.bench_local(|| {
        store.apply(Event::Init(Kind::EndpointSlice));
        for i in 0..SERVICES {
            store.apply(EndpointSlice::try_from(&slice(i, 0)).into());
        }
        store.apply(Event::InitDone(Kind::EndpointSlice));
        let new = store.snapshot().expect("the lists are complete");
        assert_eq!(diff(&old.service_ports, &new.service_ports).count(), 0);
    });
}

fn node_name(i: usize) -> String {
    format!("node-{:04}.example.internal", i % NODES)
}

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta { namespace: Some("production".into()), name: Some(name), ..ObjectMeta::default() }
}

fn node() -> v1::Node {
    let metadata = ObjectMeta { name: Some(node_name(0)), ..ObjectMeta::default() };
    v1::Node { metadata, ..v1::Node::default() }
}

fn service(i: usize) -> v1::Service {
    v1::Service {
        metadata: metadata(format!("service-{i:05}")),
        spec: Some(v1::ServiceSpec {
            cluster_ip: Some(format!("10.{}.{}.{}", 96 + (i >> 16), (i >> 8) & 255, i & 255)),
            ports: Some(vec![v1::ServicePort { name: Some("http".into()), port: 80, ..v1::ServicePort::default() }]),
            ..v1::ServiceSpec::default()
        }),
        status: None,
    }
}

/// The endpoints of Service `i`; another `generation` has another address in one of them.
fn slice(i: usize, generation: usize) -> discovery::EndpointSlice {
    let mut metadata = metadata(format!("service-{i:05}-x7k2p"));
    let labels = metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/service-name".into(), format!("service-{i:05}"));
    let endpoint = |n: usize| {
        let address = i * ENDPOINTS_EACH + n + if n == 3 { generation * SERVICES * ENDPOINTS_EACH } else { 0 };
        let octet = |shift: usize| (address >> shift) & 255;
        discovery::Endpoint {
            addresses: vec![format!("{}.{}.{}.{}", 10 + octet(24), octet(16), octet(8), octet(0))],
            conditions: Some(discovery::EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(node_name(address)),
            zone: Some(format!("zone-{}", address % 3)),
            ..discovery::Endpoint::default()
        }
    };
    discovery::EndpointSlice {
        metadata,
        address_type: "IPv4".into(),
        endpoints: Some((0..ENDPOINTS_EACH).map(endpoint).collect()),
        ports: Some(vec![discovery::EndpointPort {
            name: Some("http".into()),
            port: Some(8080),
            ..discovery::EndpointPort::default()
        }]),
    }
}

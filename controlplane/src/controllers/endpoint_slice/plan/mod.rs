//! What a Service's slices are to become: a pure function of the Service, its pods and the slices as they are.
//!
//! An endpoint stays in the slice where it is. What is new goes, in this order, to
//! ```text
//!  1. slices that must be written anyway        a change of one pod is one write
//!  2. the fullest slice that has room for all   one more write
//!  3. slices with room, the emptiest first      no new slice while there is room
//!  4. new slices
//! ```
//! Kubernetes never rebalances slices, and a Service that had thousands of pods once may keep as many slices with an
//! endpoint or two. Here, where there are more than twice as many slices as it takes, each slice that is written anyway
//! takes the endpoints of another one along, which is deleted: no slice is ever written for the sake of order.
//!
//! A slice whose ports no pod has any more is written over with the new ports rather than deleted, so that a change of
//! the Service's ports leaves no moment without endpoints.
//!
//! Kubernetes keeps one empty slice for a Service without endpoints. Here such a Service has none: to every reader the
//! two are the same, and a Service whose slices are written by hand keeps only those.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::endpoint::{PortSet, endpoint};
use super::object::{Labels, Pod, Service};
use super::{HEADLESS, LAST_CHANGE_TRIGGER_TIME, MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::registry::IpFamily;

/// As in Kubernetes: small enough that rewriting one for the sake of one pod is cheap.
pub(super) const MOST_ENDPOINTS: usize = 100;

/// Writes that make the slices right.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// To be made, where they have no name yet, or replaced.
    pub(super) apply: Vec<EndpointSlice>,
    /// Names of those that are to go, after the others are written.
    pub(super) delete: Vec<String>,
}

/// The endpoints of one family and set of ports, by the names of their pods.
type Group = BTreeMap<String, Endpoint>;

/// A slice on its way from what it is to what it is to be.
struct Bin<'a> {
    /// `None`: it is new.
    old: Option<&'a EndpointSlice>,
    endpoints: Vec<Endpoint>,
    /// It must be written, or deleted.
    is_changed: bool,
}

/// What all slices of a Service have in common.
struct Common<'a> {
    service: &'a Service,
    labels: Labels,
    owner: OwnerReference,
    trigger: Timestamp,
}

/// Decides for one Service. `service` is `None` where it is to have no slices; `pods` are those that it selects, with
/// their zones; `existing` are its slices, as far as they are ours; `trigger` is when the change was seen.
pub(super) fn plan(
    service: Option<&Service>,
    pods: &[(&Pod, Option<&str>)],
    existing: &[&EndpointSlice],
    trigger: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(service) = service else {
        plan.delete = existing.iter().map(|slice| name_of(slice)).collect();
        return plan;
    };
    let common = Common { service, labels: labels(service), owner: owner(service), trigger };
    let mut groups = groups(service, pods);
    for family in [IpFamily::V4, IpFamily::V6] {
        let mut kept: BTreeMap<PortSet, Vec<&EndpointSlice>> = BTreeMap::new();
        let mut spare = Vec::new();
        for slice in existing.iter().filter(|slice| slice.address_type == family.name()) {
            let ports = PortSet::of_slice(slice.ports.as_deref());
            if groups.contains_key(&(family, ports.clone())) {
                kept.entry(ports).or_default().push(slice);
            } else {
                spare.push(*slice);
            }
        }
        for ((_, ports), group) in groups.extract_if(.., |(of, _), _| *of == family) {
            let slices = kept.remove(&ports).unwrap_or_default();
            for bin in fill(&common, group, &slices, &mut spare) {
                bin.settle(&common, family, &ports, &mut plan);
            }
        }
        plan.delete.extend(spare.into_iter().map(name_of));
    }
    let is_other = |slice: &&EndpointSlice| slice.address_type.parse::<IpFamily>().is_err();
    plan.delete.extend(existing.iter().copied().filter(is_other).map(name_of));
    plan
}

/// Every endpoint that the Service is to have.
fn groups(service: &Service, pods: &[(&Pod, Option<&str>)]) -> BTreeMap<(IpFamily, PortSet), Group> {
    let mut groups: BTreeMap<_, Group> = BTreeMap::new();
    for (pod, zone) in pods.iter().filter(|(pod, _)| pod.is_endpoint()) {
        let ports = PortSet::of_pod(service, pod);
        for family in &service.families {
            if let Some(endpoint) = endpoint(service, pod, *zone, *family) {
                groups.entry((*family, ports.clone())).or_default().insert(pod.name.clone(), endpoint);
            }
        }
    }
    groups
}

/// Puts the endpoints of a group into its slices, spare ones and new ones.
fn fill<'a>(
    common: &Common<'_>,
    mut group: Group,
    slices: &[&'a EndpointSlice],
    spare: &mut Vec<&'a EndpointSlice>,
) -> Vec<Bin<'a>> {
    let mut bins: Vec<Bin<'a>> = slices.iter().map(|slice| Bin::keep(common, slice, &mut group)).collect();
    let mut left: Vec<Endpoint> = group.into_values().rev().collect();
    // Those that would be deleted last, or they would live on with one endpoint where another has room.
    let mut changed: Vec<usize> = (0..bins.len()).filter(|index| bins[*index].is_changed).collect();
    changed.sort_by_key(|index| bins[*index].endpoints.is_empty());
    for index in changed {
        bins[index].take(&mut left);
    }
    while !left.is_empty()
        && let Some(slice) = spare.pop()
    {
        let mut bin = Bin { old: Some(slice), endpoints: Vec::new(), is_changed: true };
        bin.take(&mut left);
        bins.push(bin);
    }
    let fits = |bin: &&mut Bin<'_>| bin.room() >= left.len();
    if let Some(fullest) = bins.iter_mut().filter(fits).min_by_key(|bin| bin.room()) {
        fullest.take(&mut left);
    }
    let mut emptiest_first: Vec<usize> = (0..bins.len()).collect();
    emptiest_first.sort_by_key(|index| bins[*index].endpoints.len());
    for index in emptiest_first {
        bins[index].take(&mut left);
    }
    while !left.is_empty() {
        let mut bin = Bin { old: None, endpoints: Vec::new(), is_changed: true };
        bin.take(&mut left);
        bins.push(bin);
    }
    pack(&mut bins);
    bins
}

/// Where slices are sparse, empties one into each that is written anyway.
fn pack(bins: &mut [Bin<'_>]) {
    let endpoints: usize = bins.iter().map(|bin| bin.endpoints.len()).sum();
    let mut surplus = bins.len().saturating_sub(2 * endpoints.div_ceil(MOST_ENDPOINTS));
    // Those that are empty go without this.
    surplus = surplus.saturating_sub(bins.iter().filter(|bin| bin.endpoints.is_empty()).count());
    for target in 0..bins.len() {
        if surplus == 0 {
            return;
        }
        if !bins[target].is_changed || bins[target].endpoints.is_empty() {
            continue;
        }
        let room = bins[target].room();
        let others = (0..bins.len()).filter(|other| *other != target);
        let fits = |other: &usize| (1..=room).contains(&bins[*other].endpoints.len());
        if let Some(emptiest) = others.filter(fits).min_by_key(|other| bins[*other].endpoints.len()) {
            let moved = std::mem::take(&mut bins[emptiest].endpoints);
            bins[emptiest].is_changed = true;
            bins[target].endpoints.extend(moved);
            surplus -= 1;
        }
    }
}

// === impl Bin ===

impl<'a> Bin<'a> {
    /// The slice with those of its endpoints that are wanted, as they are now; they leave the group.
    fn keep(common: &Common<'_>, slice: &'a EndpointSlice, group: &mut Group) -> Self {
        let old = slice.endpoints.as_deref().unwrap_or_default();
        let wanted = old.iter().filter_map(|endpoint| group.remove(pod_of(endpoint)?));
        let endpoints: Vec<Endpoint> = wanted.take(MOST_ENDPOINTS).collect();
        let is_changed = endpoints != old || !common.is_on(&slice.metadata);
        Bin { old: Some(slice), endpoints, is_changed }
    }

    fn room(&self) -> usize {
        MOST_ENDPOINTS.saturating_sub(self.endpoints.len())
    }

    /// Takes as many as there is room for, from the end.
    fn take(&mut self, left: &mut Vec<Endpoint>) {
        let count = self.room().min(left.len());
        self.is_changed |= count > 0;
        self.endpoints.extend(left.drain(left.len() - count..).rev());
    }

    /// Adds the write that it takes, if any.
    fn settle(self, common: &Common<'_>, family: IpFamily, ports: &PortSet, plan: &mut Plan) {
        match self.old {
            Some(old) if self.endpoints.is_empty() => plan.delete.push(name_of(old)),
            _ if !self.is_changed => {}
            old => plan.apply.push(EndpointSlice {
                address_type: family.name().to_owned(),
                metadata: common.metadata(old.map(|old| &old.metadata)),
                ports: Some(ports.to_slice()),
                endpoints: Some(self.endpoints),
            }),
        }
    }
}

// === impl Common ===

impl Common<'_> {
    fn is_on(&self, metadata: &ObjectMeta) -> bool {
        metadata.labels.as_ref() == Some(&self.labels)
            && metadata.owner_references.as_deref() == Some(std::slice::from_ref(&self.owner))
    }

    /// For a slice that is written; over that which it has, resourceVersion and other annotations included.
    fn metadata(&self, old: Option<&ObjectMeta>) -> ObjectMeta {
        let new = || ObjectMeta {
            namespace: Some(self.service.namespace.clone()),
            generate_name: Some(format!("{}-", self.service.name)),
            ..ObjectMeta::default()
        };
        let mut metadata = old.cloned().unwrap_or_else(new);
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(LAST_CHANGE_TRIGGER_TIME.to_owned(), self.trigger.to_string());
        metadata.labels = Some(self.labels.clone());
        metadata.owner_references = Some(vec![self.owner.clone()]);
        metadata
    }
}

/// The Service's own labels, which may name the proxy that serves it, and ours.
fn labels(service: &Service) -> Labels {
    let mut labels = service.labels.clone();
    labels.remove(HEADLESS);
    if service.is_headless {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn owner(service: &Service) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: service.name.clone(),
        uid: service.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn name_of(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

/// The pod that an endpoint stands for.
fn pod_of(endpoint: &Endpoint) -> Option<&str> {
    endpoint.target_ref.as_ref()?.name.as_deref()
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

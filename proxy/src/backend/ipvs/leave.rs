//! Leaving the mode. Connections end with their destinations, so those stay, and what leads to them, until there are none
//! any more. New connections are the next mode's, which translates them before IPVS can see them.

use tollgate_model::name::IpFamily;

use super::changes::Applied;
use super::kernel::{Error, Kernel, Rules};
use super::object::{Element, ElementValue, Route, ServiceChange, ServiceStep, SetName};
use super::{Ipvs, netlink::ipvs::ListedDestination};

/// How far leaving has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing of ours is there any more.
    Everything,
    /// So many connections go on.
    Connections(u64),
}

impl Ipvs {
    /// Gives up the node, once another mode has it. To be called again until nothing is left; what is there tells how far it
    /// has come, so that another process may go on with it.
    ///
    /// # Errors
    /// When the kernel can't be read or written.
    pub fn leave(&mut self) -> Result<Left, super::Error> {
        if self.kernel.is_clean()? {
            return Ok(Left::Everything);
        }
        let mut open = 0;
        for family in IpFamily::ALL {
            open += drain(&self.kernel, family)?;
        }
        if open > 0 {
            return Ok(Left::Connections(open));
        }
        self.kernel.delete_link()?;
        for rules in Rules::open_all() {
            IpFamily::ALL.into_iter().try_for_each(|family| rules.remove(family))?;
        }
        IpFamily::ALL.into_iter().try_for_each(|family| self.kernel.destroy_sets(family))?;
        Ok(Left::Everything)
    }
}

/// Deletes what has no connections, and leaves the rest without new ones. Returns how many connections there are.
fn drain(kernel: &Kernel, family: IpFamily) -> Result<u64, Error> {
    let listed = kernel.list(family, |_| false)?;
    let mut steps = Vec::new();
    let (mut open, mut kept) = (0, Vec::new());
    for (service, destinations) in &listed.services {
        let before = open;
        for destination in destinations {
            open += u64::from(destination.open);
            steps.extend(step(destination).map(|change| ServiceStep { key: service.key, change }));
        }
        match open > before {
            true => kept.extend(service.key.ip()),
            // One that has been given no connection for a moment may be given one yet: only the next time it goes.
            false if destinations.iter().all(|it| it.weight == 0) => {
                steps.push(ServiceStep { key: service.key, change: ServiceChange::Delete });
            }
            false => open += 1,
        }
    }
    kernel.change_services(family, &steps)?;
    // Its addresses stay the node's own, and refuse what the next mode has not translated.
    let applied = Applied::from(&listed);
    let is_kept = |ip| kept.contains(&ip);
    let vips = applied.elements.keys().filter(|element| element.set == SetName::Vips);
    let changes: Vec<(Element, Option<ElementValue>)> =
        vips.filter(|element| !is_kept(element.ip)).map(|element| (element.clone(), None)).collect();
    kernel.flush_sets(family, &[SetName::Vips])?;
    kernel.change_elements(family, &changes)?;
    if let Some((link, _)) = kernel.link()? {
        let is_left = |route: &&Route| kept.iter().any(|ip| route.net.contains(ip));
        let gone: Vec<_> = applied.routes.iter().filter(|route| !is_left(route)).copied().collect();
        kernel.change_routes(link, &gone, false)?;
    }
    Ok(open)
}

fn step(destination: &ListedDestination) -> Option<ServiceChange> {
    match (destination.weight, destination.open) {
        (0, 0) => Some(ServiceChange::DeleteDestination(destination.to)),
        (0, _) => None,
        (..) => Some(ServiceChange::SetDestination(destination.to, 0)),
    }
}

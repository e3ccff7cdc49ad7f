//! Addresses: where a container's come from, and that they go back.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::conf::range::{Range, RangeSet};
use crate::conf::{Ipam, NetConf};
use crate::error::Error;
use crate::result::{Dns, IpConfig, NetResult, Route};
use crate::state::handoff::PodCidrs;

pub mod delegate;
pub mod lease;
pub mod store;

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Addresses {
    /// Its addresses.
    pub ips: Vec<IpConfig>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// What another plugin says about DNS.
    pub dns: Dns,
}

/// The built-in IPAM of a network, with what the daemon says where the configuration leaves it to that.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// A container gets an address from each.
    pub sets: Vec<RangeSet>,
    /// Routes that containers get.
    pub routes: Vec<Route>,
}

impl Pool {
    /// The pool of a configuration; nothing if another plugin has it.
    ///
    /// # Errors
    /// If it is left to the daemon, and that has not said it.
    pub fn of(conf: &NetConf, told: Option<&PodCidrs>) -> Result<Option<Self>, Error> {
        match &conf.ipam {
            Ipam::Plugin(_) => Ok(None),
            Ipam::Ranges { sets, routes } => Ok(Some(Self { sets: sets.clone(), routes: routes.clone() })),
            Ipam::PodCidrs { routes } => {
                let missing = || Error::PodCidrsUnknown(format!("there is no {}", crate::state::handoff::POD_CIDRS));
                let cidrs = &told.ok_or_else(missing)?.pod_cidrs;
                let set = |cidr: &IpNet| Ok(vec![Range::of_subnet(*cidr, "podCIDRs")?]);
                let sets = cidrs.iter().map(set).collect::<Result<_, Error>>()?;
                Ok(Some(Self { sets, routes: routes.clone() }))
            }
        }
    }

    /// What a container gets that has these addresses.
    pub fn addresses(&self, ips: &[IpAddr]) -> Addresses {
        let range_of = |ip: &IpAddr| self.sets.iter().flatten().find(|range| range.has(*ip));
        let configure = |ip: &IpAddr| {
            let range = range_of(ip)?;
            // A prefix that is no longer than the subnet's maximum is always one.
            let address = IpNet::new(*ip, range.subnet.prefix_len()).ok()?;
            Some(IpConfig { address, gateway: Some(range.gateway), interface: None })
        };
        Addresses { ips: ips.iter().filter_map(configure).collect(), routes: self.routes.clone(), dns: Dns::default() }
    }
}

impl From<NetResult> for Addresses {
    fn from(result: NetResult) -> Self {
        Self { ips: result.ips, routes: result.routes, dns: result.dns }
    }
}

//! Other programs' policies for packets that this node forwards, as Docker's DROP. A packet to a Service that passed ours
//! still meets them. The modes that have no rules among theirs can only say so.

use std::fmt;

use tollgate_model::name::IpFamily;
use tollgate_nftables::Family;
use tollgate_nftables::chain::{Base, Chain, Hook};
use tollgate_nftables::socket::{Failure, Socket};

use super::iptables::legacy_forward_drop;

/// A chain that drops what its rules do not accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropPolicy {
    /// The chain, as its program calls it.
    pub chain: String,
    /// What to run for Service traffic to pass.
    pub remedy: String,
}

/// Which packets a table of nf_tables is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TableFamily {
    One(IpFamily),
    Inet,
}

/// Says in the log which chains may drop forwarded Service traffic. Whether their rules accept it is not looked at.
pub(crate) fn warn_of_drop_policies(families: &[IpFamily]) {
    for DropPolicy { chain, remedy } in drop_policies(families) {
        tracing::warn!(
            chain,
            remedy,
            "the policy of {chain} is DROP: packets to Services that this node forwards pass only if its rules accept them; if \
             they do not, run `{remedy}`",
        );
    }
}

/// The chains of other programs that see forwarded packets of these families and have the policy DROP. What can't be asked
/// has none.
#[must_use]
pub fn drop_policies(families: &[IpFamily]) -> Vec<DropPolicy> {
    let mut found = of_nftables(families).unwrap_or_else(|failure| {
        tracing::debug!(?failure, "cannot look for policies of nf_tables for forwarded packets");
        Vec::new()
    });
    for family in families {
        match legacy_forward_drop(*family) {
            Ok(command) => found.extend(command.map(DropPolicy::of_legacy)),
            Err(error) => tracing::warn!(
                %family,
                error = &error as &dyn std::error::Error,
                "cannot tell whether the policy of iptables-legacy's FORWARD is DROP, which would keep packets to Services from \
                 being forwarded",
            ),
        }
    }
    found
}

fn of_nftables(families: &[IpFamily]) -> Result<Vec<DropPolicy>, Failure> {
    let mut socket = Socket::open().map_err(Failure::Receive)?;
    let mut found = Vec::new();
    for family in families.iter().copied().map(TableFamily::One).chain([TableFamily::Inet]) {
        let chains = socket.chains_of_all(family.of_tables())?;
        found.extend(chains.iter().filter_map(|(table, chain)| DropPolicy::of_chain(family, table, chain)));
    }
    Ok(found)
}

impl DropPolicy {
    fn of_chain(family: TableFamily, table: &str, chain: &Chain) -> Option<Self> {
        let Chain { name, base: Some(Base { hook: Hook::Forward, accepts: false, .. }) } = chain else { return None };
        // A table that iptables made must be changed with iptables: it takes no rule of nft's own for one of its own.
        let remedy = match (family, table, &**name) {
            (TableFamily::One(IpFamily::V4), "filter", "FORWARD") => accept_with("iptables"),
            (TableFamily::One(IpFamily::V6), "filter", "FORWARD") => accept_with("ip6tables"),
            _ => format!("nft insert rule {family} {table} {name} ct status dnat accept"),
        };
        Some(Self { chain: format!("the nftables chain {family} {table} {name}"), remedy })
    }

    fn of_legacy(command: String) -> Self {
        Self { remedy: accept_with(&command), chain: format!("{command}'s FORWARD") }
    }
}

/// `ctstate DNAT` holds for both directions of a connection.
fn accept_with(command: &str) -> String {
    format!("{command} -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT")
}

impl TableFamily {
    fn of_tables(self) -> Family {
        match self {
            Self::One(IpFamily::V4) => Family::Ip,
            Self::One(IpFamily::V6) => Family::Ip6,
            Self::Inet => Family::Inet,
        }
    }
}

/// As nft names it.
impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(IpFamily::V4) => "ip",
            Self::One(IpFamily::V6) => "ip6",
            Self::Inet => "inet",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chains_that_drop_what_is_forwarded_are_told() {
        let chain = |name: &str, hook, accepts| Chain {
            name: name.into(),
            base: Some(Base { kind: "filter".into(), hook, priority: 0, accepts }),
        };
        let (ip, ip6) = (TableFamily::One(IpFamily::V4), TableFamily::One(IpFamily::V6));
        let found = [
            (ip, "filter", Chain { name: "DOCKER".into(), base: None }),
            (ip, "filter", chain("FORWARD", Hook::Forward, false)),
            (ip, "filter", chain("INPUT", Hook::Input, false)),
            (ip, "other", chain("FORWARD", Hook::Forward, true)),
            (ip6, "filter", chain("FORWARD", Hook::Forward, false)),
            (ip6, "filter", chain("mine", Hook::Forward, false)),
            (TableFamily::Inet, "firewall", chain("gate", Hook::Forward, false)),
        ];
        let found = found.iter().filter_map(|(family, table, chain)| DropPolicy::of_chain(*family, table, chain));
        let found: Vec<_> = found.map(|DropPolicy { chain, remedy }| format!("{chain}: {remedy}")).collect();
        assert_eq!(
            found,
            [
                "the nftables chain ip filter FORWARD: iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
                "the nftables chain ip6 filter FORWARD: ip6tables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
                "the nftables chain ip6 filter mine: nft insert rule ip6 filter mine ct status dnat accept",
                "the nftables chain inet firewall gate: nft insert rule inet firewall gate ct status dnat accept",
            ]
        );
    }
}

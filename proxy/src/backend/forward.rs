//! Other programs' policies for packets that this node forwards, as Docker's DROP. A packet to a Service that passed ours
//! still meets them. The modes that have no rules among theirs can only say so.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;
use tollgate_model::name::IpFamily;

/// Where commands are looked for besides `PATH`, which often lacks these for users that are not root.
const DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A chain that drops what its rules do not accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropPolicy {
    /// The chain, as its program calls it.
    pub chain: String,
    /// What to run for Service traffic to pass.
    pub remedy: String,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    chain: Option<Chain>,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
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

/// The chains of other programs that see forwarded packets of these families and have the policy DROP. A program that is
/// not installed, or does not answer, has none.
#[must_use]
pub fn drop_policies(families: &[IpFamily]) -> Vec<DropPolicy> {
    let mut found =
        output("nft", &["-j", "list", "chains"]).map(|json| of_nftables(&json, families)).unwrap_or_default();
    found.extend(families.iter().filter_map(|family| of_legacy(*family)));
    found
}

fn of_nftables(json: &[u8], families: &[IpFamily]) -> Vec<DropPolicy> {
    let chains = match serde_json::from_slice::<Listing>(json) {
        Ok(listing) => listing.nftables,
        Err(error) => {
            tracing::debug!(%error, "cannot read how nft lists chains");
            return Vec::new();
        }
    };
    let drops = chains.into_iter().filter_map(|entry| entry.chain).filter(|chain| {
        let is_ours = match chain.family.as_str() {
            "ip" => families.contains(&IpFamily::V4),
            "ip6" => families.contains(&IpFamily::V6),
            family => family == "inet",
        };
        is_ours && chain.hook.as_deref() == Some("forward") && chain.policy.as_deref() == Some("drop")
    });
    drops.map(DropPolicy::from).collect()
}

impl From<Chain> for DropPolicy {
    fn from(Chain { family, table, name, .. }: Chain) -> Self {
        // A table that iptables made must be changed with iptables: it takes no rule of nft's own for one of its own.
        let remedy = match (family.as_str(), table.as_str(), name.as_str()) {
            ("ip", "filter", "FORWARD") => accept_with("iptables"),
            ("ip6", "filter", "FORWARD") => accept_with("ip6tables"),
            _ => format!("nft insert rule {family} {table} {name} ct status dnat accept"),
        };
        Self { chain: format!("the nftables chain {family} {table} {name}"), remedy }
    }
}

/// Only where the kernel has the table already: to ask iptables-legacy would make it.
fn of_legacy(family: IpFamily) -> Option<DropPolicy> {
    let (names, command) = match family {
        IpFamily::V4 => ("/proc/net/ip_tables_names", "iptables-legacy"),
        IpFamily::V6 => ("/proc/net/ip6_tables_names", "ip6tables-legacy"),
    };
    let tables = fs::read_to_string(names).ok()?;
    tables.lines().find(|table| *table == "filter")?;
    let rules = output(command, &["-w", "-S", "FORWARD"])?;
    let drops = String::from_utf8_lossy(&rules).lines().any(|rule| rule == "-P FORWARD DROP");
    drops.then(|| DropPolicy { chain: format!("{command}'s FORWARD"), remedy: accept_with(command) })
}

/// `ctstate DNAT` holds for both directions of a connection.
fn accept_with(command: &str) -> String {
    format!("{command} -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT")
}

fn output(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&path).chain(DIRECTORIES.map(PathBuf::from));
    let program = directories.find_map(|directory| Some(directory.join(program)).filter(|it| it.is_file()))?;
    let output = Command::new(&program).args(arguments).env("LC_ALL", "C").output();
    match output {
        Ok(output) if output.status.success() => Some(output.stdout),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            tracing::debug!(program = %program.display(), ?arguments, %said, "cannot look for policies of forwarded packets");
            None
        }
        Err(error) => {
            tracing::debug!(program = %program.display(), %error, "cannot look for policies of forwarded packets");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chains_that_drop_what_is_forwarded_are_told() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, policy: &str| {
            serde_json::json!({ "chain": {
                "family": family, "table": table, "name": name, "type": "filter", "hook": hook, "prio": 0, "policy": policy,
            } })
        };
        let listing = serde_json::json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "chain": { "family": "ip", "table": "filter", "name": "DOCKER", "handle": 3 } },
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "INPUT", "input", "drop"),
            chain("ip", "other", "FORWARD", "forward", "accept"),
            chain("ip6", "filter", "FORWARD", "forward", "drop"),
            chain("inet", "firewall", "gate", "forward", "drop"),
            chain("bridge", "filter", "FORWARD", "forward", "drop"),
        ] });
        let found = of_nftables(listing.to_string().as_bytes(), &[IpFamily::V4]);
        let found: Vec<_> = found.iter().map(|it| (it.chain.as_str(), it.remedy.as_str())).collect();
        assert_eq!(
            found,
            [
                ("the nftables chain ip filter FORWARD", "iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"),
                ("the nftables chain inet firewall gate", "nft insert rule inet firewall gate ct status dnat accept"),
            ]
        );
    }
}

//! The file that a network's leases are in: one call at a time reads, changes and replaces it.

use std::net::IpAddr;
use std::path::PathBuf;

use time::OffsetDateTime;

use super::Pool;
use super::lease::Leases;
use crate::env::Attachment;
use crate::error::Error;
use crate::state::lock::{Lock, What};
use crate::state::{self, network_dir};

/// Takes addresses for an attachment.
pub fn take(network: &str, pool: &Pool, asked: &[IpAddr], holder: &Attachment) -> Result<Vec<IpAddr>, Error> {
    let _lock = Lock::wait(What::Leases(network))?;
    let mut leases = read(network)?;
    let taken = leases.take(&pool.sets, asked, holder, now()).map_err(|problem| Error::Address {
        container: holder.container_id.clone(),
        network: network.into(),
        problem,
    })?;
    write(network, &leases)?;
    Ok(taken)
}

/// Lets go of an attachment's addresses.
pub fn release(network: &str, holder: &Attachment) -> Result<(), Error> {
    let _lock = Lock::wait(What::Leases(network))?;
    let mut leases = read(network)?;
    if leases.release(holder, now()) { write(network, &leases) } else { Ok(()) }
}

/// Lets go of the addresses of all whom `is_gone` says to be so.
pub fn release_gone(network: &str, is_gone: impl Fn(&Attachment) -> Result<bool, Error>) -> Result<(), Error> {
    let _lock = Lock::wait(What::Leases(network))?;
    let mut leases = read(network)?;
    let mut gone = Vec::new();
    for holder in leases.holders() {
        if is_gone(holder)? {
            gone.push(holder.clone());
        }
    }
    for holder in &gone {
        leases.release(holder, now());
    }
    if gone.is_empty() { Ok(()) } else { write(network, &leases) }
}

/// Fails where nobody could get an address any more.
pub fn has_room(network: &str, pool: &Pool) -> Result<(), Error> {
    // Not a name that a container can have.
    let nobody = Attachment { container_id: String::new(), ifname: String::new() };
    let taken = read(network)?.take(&pool.sets, &[], &nobody, now());
    taken.map(drop).map_err(|problem| Error::Full { network: network.into(), problem })
}

/// The addresses that an attachment has.
pub fn of(network: &str, holder: &Attachment) -> Result<Vec<IpAddr>, Error> {
    Ok(read(network)?.of(holder))
}

fn read(network: &str) -> Result<Leases, Error> {
    let text = state::read(&path(network))?.unwrap_or_default();
    Leases::parse(&text).map_err(|wrong| Error::Damaged {
        path: path(network),
        line: wrong.line,
        problem: wrong.problem,
    })
}

fn write(network: &str, leases: &Leases) -> Result<(), Error> {
    state::replace(&path(network), leases.render(network).as_bytes())
}

fn path(network: &str) -> PathBuf {
    network_dir(network).join("leases")
}

/// To the second, as the file has it.
fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now)
}

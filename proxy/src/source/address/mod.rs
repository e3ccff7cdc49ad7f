//! The node's own addresses as a source: read over netlink, and read anew whenever the kernel says that one may have come or
//! gone. What it says is only taken as a hint that something changed; so nothing depends on every message getting through.
//!
//! - `read`: what the kernel holds, and which of it are the node's addresses, the primary ones first.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tollgate_model::name::IpFamily;
use tollgate_model::node::NodeAddresses;
use tollgate_model::store::Event;

use super::Update;
use crate::metrics::Metrics;
use crate::sync::chain;

mod read;

/// What the kernel is asked to tell of. Routes and links, because the primary addresses are those of the default routes, and
/// routes that go with their link are not told of one by one.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Link,
];

/// A change is followed at once; where they come without a pause, reading may take one part in this many of the time.
const READ_SHARE: u32 = 10;
/// And no more often than this: addresses tend to come several together.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// How long to wait where the kernel can't be asked.
const RETRY: Duration = Duration::from_secs(1);

/// Why the node's addresses could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket to watch the node's addresses")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot read the node's {what} over netlink")]
    Read {
        /// Addresses, routes or links.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        cause: rtnetlink::Error,
    },
}

/// The source, and what it has said last.
pub struct Addresses {
    netlink: Netlink,
    known: NodeAddresses,
    primary: watch::Sender<Vec<IpAddr>>,
    metrics: Arc<Metrics>,
}

/// A socket for what the kernel tells and one for what it is asked, so that answers are not lost where notices overrun.
struct Netlink {
    notices: UnboundedReceiver<(NetlinkMessage<Message>, SocketAddr)>,
    requests: Handle,
    connections: [JoinHandle<()>; 2],
}

impl Addresses {
    /// Reads the addresses of the calling thread's network namespace, and watches from here on.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn open(metrics: Arc<Metrics>) -> Result<Self, Error> {
        // Joined before the first look, so that nothing is missed between the two.
        let netlink = Netlink::open()?;
        let known = read::addresses(&netlink.requests).await?;
        let primary = watch::Sender::new(primary(&known));
        let opened = Self { netlink, known, primary, metrics };
        opened.count();
        Ok(opened)
    }

    /// What the node has, as far as is known.
    #[must_use]
    pub fn known(&self) -> &NodeAddresses {
        &self.known
    }

    /// The primary address of each family, the newest.
    #[must_use]
    pub fn primary(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.primary.subscribe()
    }

    /// Watches for ever; ends only when nobody takes its updates any more.
    pub async fn run(mut self, updates: mpsc::Sender<Update>) {
        if updates.send(self.update()).await.is_err() {
            return;
        }
        loop {
            let still_there = tokio::select! {
                still_there = self.netlink.change() => still_there,
                () = updates.closed() => return,
            };
            let start = Instant::now();
            if let Err(error) = self.follow(still_there, &updates).await {
                let error = chain(&error);
                tracing::error!(error, retry_in = ?RETRY, "cannot follow the node's addresses; going on with those known");
                tokio::time::sleep(RETRY).await;
                // Whatever the socket was about, a fresh one is looked at from the beginning.
                self.netlink.close();
                continue;
            }
            let pause = MIN_PAUSE.max(start.elapsed() * READ_SHARE);
            sleep_until(start + pause).await;
        }
    }

    /// Reads the addresses anew, and says what changed.
    async fn follow(&mut self, still_there: bool, updates: &mpsc::Sender<Update>) -> Result<(), Error> {
        if !still_there {
            self.netlink = Netlink::open()?;
        }
        let now = read::addresses(&self.netlink.requests).await?;
        if now == self.known {
            return Ok(());
        }
        let gone: Vec<_> = self.known.addresses.iter().filter(|ip| !now.addresses.contains(ip)).collect();
        let come: Vec<_> = now.addresses.iter().filter(|ip| !self.known.addresses.contains(ip)).collect();
        tracing::info!(?come, ?gone, primary = ?now.addresses.first(), "the node's addresses changed");
        self.known = now;
        let primary = primary(&self.known);
        self.primary.send_if_modified(|before| std::mem::replace(before, primary.clone()) != primary);
        self.count();
        // Nobody takes it: the daemon ends.
        let _ended = updates.send(self.update()).await;
        Ok(())
    }

    fn update(&self) -> Update {
        Update { events: vec![Event::Apply(self.known.clone().into())], revision: None, triggered: None }
    }

    fn count(&self) {
        self.metrics.node_addresses.set(i64::try_from(self.known.addresses.len()).unwrap_or(i64::MAX));
    }
}

fn primary(known: &NodeAddresses) -> Vec<IpAddr> {
    IpFamily::ALL.into_iter().filter_map(|family| known.primary(family)).collect()
}

impl Netlink {
    fn open() -> Result<Self, Error> {
        let (told, _, notices) = rtnetlink::new_multicast_connection(&GROUPS).map_err(Error::Open)?;
        let (asked, requests, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        Ok(Self { notices, requests, connections: [tokio::spawn(told), tokio::spawn(asked)] })
    }

    /// Until something may have changed, and all that has been said so far is taken in. Returns whether the socket still
    /// works.
    async fn change(&mut self) -> bool {
        let mut notices = self.notices.by_ref().map(|(message, _)| message);
        loop {
            match notices.next().await {
                Some(message) if concerns_addresses(&message) => break,
                Some(_) => {}
                None => return false,
            }
        }
        while let Some(notice) = notices.next().now_or_never() {
            if notice.is_none() {
                return false;
            }
        }
        true
    }

    /// After this, [`change`](Self::change) returns at once.
    fn close(&mut self) {
        self.notices.close();
        while let Ok(_notice) = self.notices.try_recv() {}
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connections.iter().for_each(JoinHandle::abort);
    }
}

/// Whether the node's addresses, or the order of them, may be others after this.
fn concerns_addresses(message: &NetlinkMessage<Message>) -> bool {
    let is_default = |route: &RouteMessage| {
        route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
    };
    match &message.payload {
        // Some were lost.
        NetlinkPayload::Overrun(_) => true,
        NetlinkPayload::InnerMessage(message) => match message {
            Message::NewAddress(_) | Message::DelAddress(_) | Message::DelLink(_) => true,
            Message::NewRoute(route) | Message::DelRoute(route) => is_default(route),
            Message::NewLink(link) => !link.header.flags.contains(LinkFlags::Up),
            _ => false,
        },
        _ => false,
    }
}

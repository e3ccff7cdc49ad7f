//! The one socket: sends transactions, and reads tables.
//!
//! It stays open, because closing one waits for the kernel to free what was deleted through it (5-45 ms after deletions
//! from large maps). The kernel does a transaction within `sendmsg`, and its answers are there when that returns.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkBuffer};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;
use nix::sys::socket::{setsockopt, sockopt};

use crate::attribute::{Writer, attributes, read_text, read_u32};
use crate::batch::{
    Batch, NFT_MSG_GETCHAIN, NFT_MSG_GETGEN, NFT_MSG_GETRULE, NFT_MSG_GETSET, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE,
    end_message, write_header,
};
use crate::chain::{Chain, write_name, write_table};
use crate::element::{self, Element};
use crate::rule::Rule;
use crate::set::Set;
use crate::{Family, Table};

/// nf_tables of the network namespace that the socket was opened in.
pub struct Socket {
    socket: NetlinkSocket,
    sequence: u32,
    /// How large a transaction may be.
    room: usize,
    buffer: Vec<u8>,
}

/// Why the kernel did not do as it was told.
#[derive(Debug)]
pub enum Failure {
    /// It could not be asked; nothing has changed.
    Send(io::Error),
    /// It could not be heard; what it did is not known.
    Receive(io::Error),
    /// It refused; nothing has changed.
    Refused {
        /// What was tried.
        what: String,
        /// The error number.
        errno: Errno,
        /// What else the kernel says.
        message: Option<String>,
    },
}

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NFTA_GEN_ID: u16 = 1;
/// A message's header, and that of nfnetlink after it.
const NETLINK_HEADER: usize = 16;
const NFNETLINK_HEADER: usize = 4;

/// For what belongs to no family.
const NFPROTO_UNSPEC: u8 = 0;

/// More than the kernel puts into one datagram of a dump.
const DATAGRAM: usize = 64 << 10;
/// What a socket's accounting takes besides the bytes sent (`netlink_sendmsg` keeps 32 back; the rest is for rounding).
const OVERHEAD: usize = 4096;
/// How often a dump begins anew that others' changes broke into, and how long to wait before.
const DUMPS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(5);
/// How often a transaction is sent that the kernel has no memory for, and how long to wait first; twice as long each time.
const SENDS: u32 = 5;
const WAIT: Duration = Duration::from_millis(10);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Socket {
    /// Opens one in the calling thread's network namespace, to which it stays bound.
    pub fn open() -> io::Result<Self> {
        let mut socket = NetlinkSocket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Errors come with what the kernel says about them, and without what they are about, which may be 64 KiB.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // Errors that have no room are dropped and do not hide those that came before them. If it is the acknowledgement
        // that is dropped, that is noticed.
        socket.set_no_enobufs(true)?;
        Ok(Self { socket, sequence: 0, room: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// One transaction: all of it or nothing.
    pub fn commit(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        self.transact(batch, true)
    }

    /// Whether the kernel would take that transaction.
    pub fn check(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        self.transact(batch, false)
    }

    fn transact(&mut self, batch: &mut Batch, commits: bool) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        self.make_room(batch.len() + OVERHEAD)?;
        let mut wait = WAIT;
        for _ in 1..SENDS {
            match self.send_batch(batch, commits) {
                Err(failure) if failure.is_passing() => {
                    tracing::warn!(?failure, "the kernel has no memory for a transaction now; trying again");
                    thread::sleep(wait);
                    wait *= 2;
                }
                outcome => return outcome,
            }
        }
        self.send_batch(batch, commits)
    }

    fn send_batch(&mut self, batch: &mut Batch, commits: bool) -> Result<(), Failure> {
        self.drain();
        let first = self.next_sequence(batch.messages() + 1);
        let (bytes, last) = batch.seal(first, commits);
        let sent = self.socket.send(bytes, 0);
        let outcome = sent.map_err(Failure::Send).and_then(|_| self.receive_outcome(batch, first, last));
        batch.unseal();
        outcome
    }

    /// Makes the send buffer large enough. The kernel takes a transaction from one datagram only.
    fn make_room(&mut self, bytes: usize) -> Result<(), Failure> {
        if bytes <= self.room {
            return Ok(());
        }
        // The kernel doubles what it is given, for its own accounting.
        let forced = setsockopt(&self.socket, sockopt::SndBufForce, &bytes);
        forced
            .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &bytes))
            .map_err(|errno| Failure::Send(errno.into()))?;
        self.room = bytes;
        Ok(())
    }

    fn next_sequence(&mut self, messages: usize) -> u32 {
        let count = u32::try_from(messages).unwrap_or(u32::MAX);
        // Not 0, and no wrap within a transaction.
        if self.sequence.checked_add(count).is_none() {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.sequence += count;
        first
    }

    /// Forgets answers that nobody waits for any more.
    fn drain(&mut self) {
        while self.receive(MSG_DONTWAIT).is_ok() {}
    }

    /// Reads a datagram into the buffer.
    fn receive(&mut self, flags: i32) -> io::Result<()> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, flags).map(drop)
    }

    /// The first error, or the acknowledgement of the last change.
    fn receive_outcome(&mut self, batch: &Batch, first: u32, last: u32) -> Result<(), Failure> {
        let mut outcome = None;
        loop {
            match self.receive(MSG_DONTWAIT) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Receive(error)),
            }
            for message in messages(&self.buffer) {
                if outcome.as_ref().is_some_and(Result::is_err) || message.kind != NLMSG_ERROR {
                    continue;
                }
                match message.error() {
                    Some((Errno::UnknownErrno, _)) if message.sequence == last => outcome = Some(Ok(())),
                    Some((Errno::UnknownErrno, _)) | None => {}
                    Some((errno, text)) => {
                        let index = usize::try_from(message.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                        // What is about the whole of it is said of its beginning.
                        let what = batch.describe(index);
                        outcome = Some(Err(Failure::Refused { what, errno, message: text }));
                    }
                }
            }
        }
        outcome.unwrap_or_else(|| Err(Failure::Receive(io::Error::other("the kernel has not said what became of it"))))
    }

    // === reading ===

    /// Whether there is a table.
    pub fn has_table(&mut self, table: Table) -> Result<bool, Failure> {
        let mut is_there = false;
        let family = table.family.number();
        let asked = self.ask(family, NFT_MSG_GETTABLE, 0, |it| write_table(it, table.name), |_| is_there = true);
        found(asked.map(|_| ()))?;
        Ok(is_there)
    }

    /// Whether a table has a chain of that name.
    pub fn has_chain(&mut self, table: Table, chain: &str) -> Result<bool, Failure> {
        let mut is_there = false;
        let request = |it: &mut Writer| write_name(it, table.name, chain);
        let asked = self.ask(table.family.number(), NFT_MSG_GETCHAIN, 0, request, |_| is_there = true);
        found(asked.map(|_| ()))?;
        Ok(is_there)
    }

    /// The number of the last change to any table in the network namespace.
    pub fn generation(&mut self) -> Result<u32, Failure> {
        let mut generation = None;
        self.ask(
            NFPROTO_UNSPEC,
            NFT_MSG_GETGEN,
            0,
            |_| {},
            |bytes| {
                generation = attributes(bytes).find(|(kind, _)| *kind == NFTA_GEN_ID).and_then(|(_, id)| read_u32(id));
            },
        )?;
        generation.ok_or_else(|| Failure::Receive(io::Error::other("the kernel does not say the rules' generation")))
    }

    /// The sets of a table.
    pub fn sets(&mut self, table: Table) -> Result<Vec<Set>, Failure> {
        self.dump(
            table,
            NFT_MSG_GETSET,
            |it| write_table(it, table.name),
            |sets: &mut Vec<Set>, bytes| {
                sets.extend(Set::read(bytes));
                true
            },
        )
    }

    /// The chains of a table.
    pub fn chains(&mut self, table: Table) -> Result<Vec<Chain>, Failure> {
        self.dump(
            table,
            NFT_MSG_GETCHAIN,
            |_| {},
            |chains: &mut Vec<Chain>, bytes| {
                chains.extend(Chain::read(bytes));
                true
            },
        )
    }

    /// The chains of every table of a family, each with its table's name.
    pub fn chains_of_all(&mut self, family: Family) -> Result<Vec<(Box<str>, Chain)>, Failure> {
        self.dump_all(
            family.number(),
            NFT_MSG_GETCHAIN,
            |_| {},
            |chains: &mut Vec<_>, bytes| {
                chains.extend(table_of(bytes).map(Box::from).zip(Chain::read(bytes)));
                true
            },
        )
    }

    /// The rules of a table, chain by chain and in order, each with the name of its chain.
    pub fn rules(&mut self, table: Table) -> Result<Vec<(Box<str>, Rule)>, Failure> {
        self.dump(
            table,
            NFT_MSG_GETRULE,
            |it| write_table(it, table.name),
            |rules: &mut Vec<_>, bytes| {
                rules.extend(Rule::read(bytes).map(|(chain, rule)| (Box::from(chain), rule)));
                true
            },
        )
    }

    /// The elements of a set, each told to `each` to be collected, which says whether it had not been told that one.
    ///
    /// They are of one moment as long as nobody changes that set; others' changes to other sets don't matter.
    ///
    /// A hash table that still grows is dumped with gaps, and the kernel does not say so: each datagram goes on at the
    /// place that the one before it had come to, and an element may have moved to the other side of that. But as many
    /// elements as it leaves out, at least, it tells twice.
    pub fn elements<T: Default>(
        &mut self,
        table: Table,
        set: &str,
        mut each: impl FnMut(&mut T, Element) -> bool,
    ) -> Result<T, Failure> {
        self.dump(
            table,
            NFT_MSG_GETSETELEM,
            |it| element::write_set(it, table.name, set),
            |elements, bytes| element::read_elements(bytes).flatten().all(|element| each(elements, element)),
        )
    }

    /// Asks for all of something that a table has.
    fn dump<T: Default>(
        &mut self,
        table: Table,
        kind: u16,
        request: impl Fn(&mut Writer),
        mut each: impl FnMut(&mut T, &[u8]) -> bool,
    ) -> Result<T, Failure> {
        // Old kernels dump every table's.
        let of_table = |found: &mut T, bytes: &[u8]| table_of(bytes) != Some(table.name) || each(found, bytes);
        self.dump_all(table.family.number(), kind, request, of_table)
    }

    /// Asks for all of something; and again if others' changes broke into that, as the kernel says or as `each` finds. What
    /// is gone is empty.
    fn dump_all<T: Default>(
        &mut self,
        nfproto: u8,
        kind: u16,
        request: impl Fn(&mut Writer),
        mut each: impl FnMut(&mut T, &[u8]) -> bool,
    ) -> Result<T, Failure> {
        for _ in 0..DUMPS {
            let (mut found, mut is_whole) = (T::default(), true);
            let asked = self.ask(nfproto, kind, NLM_F_DUMP, &request, |bytes| {
                is_whole = is_whole && each(&mut found, bytes);
            });
            match asked {
                Ok(Dump::Whole) if is_whole => return Ok(found),
                Ok(Dump::Whole | Dump::Interrupted) => thread::sleep(PAUSE),
                Err(Failure::Refused { errno: Errno::ENOENT, .. }) => return Ok(T::default()),
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Receive(io::Error::other("the rules change too often to be read")))
    }

    fn ask(
        &mut self,
        nfproto: u8,
        kind: u16,
        flags: u16,
        request: impl Fn(&mut Writer),
        mut each: impl FnMut(&[u8]),
    ) -> Result<Dump, Failure> {
        self.drain();
        let sequence = self.next_sequence(1);
        let mut writer = Writer::default();
        // A single object is answered by itself; the acknowledgement says that nothing more comes.
        let flags = if flags == 0 { netlink_packet_core::NLM_F_ACK } else { flags };
        write_header(&mut writer, kind, flags, nfproto, 0);
        request(&mut writer);
        end_message(&mut writer, 0);
        writer.patch(8, &sequence.to_ne_bytes());
        self.socket.send(writer.as_slice(), 0).map_err(Failure::Send)?;
        let mut dump = Dump::Whole;
        loop {
            match self.receive(0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received.map_err(Failure::Receive)?,
            }
            for message in messages(&self.buffer).filter(|message| message.sequence == sequence) {
                if message.flags & NLM_F_DUMP_INTR > 0 {
                    dump = Dump::Interrupted;
                }
                match (message.kind, message.error()) {
                    (NLMSG_DONE | NLMSG_ERROR, None | Some((Errno::UnknownErrno, _))) => return Ok(dump),
                    (NLMSG_DONE | NLMSG_ERROR, Some((errno, text))) => {
                        let what = "to list the tables".to_owned();
                        return Err(Failure::Refused { what, errno, message: text });
                    }
                    _ => each(message.payload.get(NFNETLINK_HEADER..).unwrap_or_default()),
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dump {
    Whole,
    Interrupted,
}

/// Of all nf_tables objects, the first attribute is the table's name.
fn table_of(object: &[u8]) -> Option<&str> {
    attributes(object).next().and_then(|(_, name)| read_text(name))
}

/// What is gone is no error.
fn found(asked: Result<(), Failure>) -> Result<(), Failure> {
    match asked {
        Err(Failure::Refused { errno: Errno::ENOENT, .. }) => Ok(()),
        asked => asked,
    }
}

impl Failure {
    /// Whether nothing has changed, and the same may succeed in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused { errno, .. } => is_passing(*errno),
            Self::Send(error) => is_passing(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
            Self::Receive(_) => false,
        }
    }
}

fn is_passing(errno: Errno) -> bool {
    matches!(errno, Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR)
}

/// A message of a datagram.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(buffer.length()).ok()?;
        let (kind, flags, sequence) = (buffer.message_type(), buffer.flags(), buffer.sequence_number());
        let payload = rest.get(NETLINK_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, payload })
    })
}

impl Message<'_> {
    /// What an error, or the end of a dump, says. `UnknownErrno`, which is 0, is that all went well.
    fn error(&self) -> Option<(Errno, Option<String>)> {
        let code = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        let original = 4 + NETLINK_HEADER;
        let has_text = self.flags & NLM_F_ACK_TLVS > 0 && self.flags & NLM_F_CAPPED > 0;
        let details = self.payload.get(original..).filter(|_| has_text).unwrap_or_default();
        let text = attributes(details).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG);
        let text = text.and_then(|(_, text)| read_text(text)).map(str::to_owned);
        Some((Errno::from_raw(code.saturating_neg()), text))
    }
}

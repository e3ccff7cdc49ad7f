//! Requests and answers over a netlink socket, for families without transactions: many messages go in one datagram, each
//! is judged by itself, and the kernel says which it refused.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
};
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};

use tollgate_nftables::attribute::{Writer, attributes, read_text};

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;
/// Where a header has its length, flags and sequence number.
const LENGTH_AT: usize = 0;
const FLAGS_AT: usize = 6;
const SEQUENCE_AT: usize = 8;

/// Messages of one datagram. If the kernel refuses all of them, its answers must have room in a receive buffer of the usual
/// size (208 KiB), in which each takes less than 800 bytes.
const BATCH: usize = 200;
/// More than the kernel puts into one datagram of a dump.
const DATAGRAM: usize = 64 << 10;
/// How often a dump begins anew that others' changes broke into.
const DUMPS: u32 = 20;

/// Messages to be sent, in order.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    writer: Writer,
    starts: Vec<usize>,
}

/// A message that the kernel refused, by its place among those sent.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) index: usize,
    /// The error number; ip_set has numbers of its own from 4096 on.
    pub(crate) code: i32,
    /// What else the kernel says.
    pub(crate) message: Option<String>,
}

/// One socket, bound to the network namespace of the thread that opened it.
pub(crate) struct Socket {
    socket: NetlinkSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Messages {
    /// Appends a message; `body` is what comes after its header.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
        let start = self.writer.len();
        self.starts.push(start);
        self.writer.put_raw(&[0; 4]);
        self.writer.put_raw(&kind.to_ne_bytes());
        self.writer.put_raw(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.writer.put_raw(&[0; 8]);
        body(&mut self.writer);
        // Attributes end where the next may begin; other bodies may not.
        let padding = self.writer.len().next_multiple_of(4) - self.writer.len();
        self.writer.put_raw(&[0; 3][..padding]);
        let length = u32::try_from(self.writer.len() - start).unwrap_or(u32::MAX);
        self.writer.patch(start + LENGTH_AT, &length.to_ne_bytes());
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The bytes of the messages from one place up to another.
    fn bytes(&self, from: usize, to: usize) -> &[u8] {
        let start = self.starts.get(from).copied().unwrap_or(self.writer.len());
        let end = self.starts.get(to).copied().unwrap_or(self.writer.len());
        &self.writer.as_slice()[start..end]
    }

    fn seal(&mut self, index: usize, sequence: u32, is_last: bool) {
        let start = self.starts[index];
        self.writer.patch(start + SEQUENCE_AT, &sequence.to_ne_bytes());
        if is_last {
            let flags = &self.writer.as_slice()[start + FLAGS_AT..start + FLAGS_AT + 2];
            let flags = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            self.writer.patch(start + FLAGS_AT, &flags.to_ne_bytes());
        }
    }
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = NetlinkSocket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Errors come with what the kernel says about them, and without the message that they are about.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends all messages. The kernel does each of them that it does not refuse.
    ///
    /// # Errors
    /// When it could not be spoken to; which of them it did is not known then.
    pub(crate) fn send(&mut self, messages: &mut Messages) -> io::Result<Vec<Refusal>> {
        let mut refusals = Vec::new();
        let mut from = 0;
        while from < messages.len() {
            let to = messages.len().min(from + BATCH);
            let first = self.sequence.wrapping_add(1);
            for index in from..to {
                self.sequence = self.sequence.wrapping_add(1);
                messages.seal(index, self.sequence, index + 1 == to);
            }
            let last = self.sequence;
            self.socket.send(messages.bytes(from, to), 0)?;
            self.hear(from, first, last, &mut refusals)?;
            from = to;
        }
        Ok(refusals)
    }

    /// Until the last message is answered.
    fn hear(&mut self, from: usize, first: u32, last: u32, refusals: &mut Vec<Refusal>) -> io::Result<()> {
        loop {
            self.receive()?;
            for message in parse(&self.buffer).filter(|message| message.kind == NLMSG_ERROR) {
                let place = message.sequence.wrapping_sub(first);
                let count = last.wrapping_sub(first);
                // Of a request before, whose answer nobody has waited for.
                if place > count {
                    continue;
                }
                let (code, text) = message.error();
                if code != 0 {
                    let index = from + usize::try_from(place).unwrap_or_default();
                    refusals.push(Refusal { index, code, message: text });
                }
                if message.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Asks for all of something. `each` gets the body of each message that tells of it. Begins anew when others' changes broke
    /// into the dump.
    ///
    /// # Errors
    /// The outer ones are about the socket, the inner ones are the kernel's.
    pub(crate) fn dump<T: Default>(
        &mut self,
        kind: u16,
        body: impl Fn(&mut Writer),
        mut each: impl FnMut(&mut T, &[u8]),
    ) -> io::Result<Result<T, i32>> {
        for _ in 0..DUMPS {
            let mut found = T::default();
            match self.ask(kind, NLM_F_DUMP, &body, |bytes| each(&mut found, bytes))? {
                Ok(true) => return Ok(Ok(found)),
                Ok(false) => {}
                Err(code) => return Ok(Err(code)),
            }
        }
        Err(io::Error::other("what was to be listed changes too often to be read"))
    }

    /// Asks for one thing.
    pub(crate) fn get<T: Default>(
        &mut self,
        kind: u16,
        body: impl Fn(&mut Writer),
        mut each: impl FnMut(&mut T, &[u8]),
    ) -> io::Result<Result<T, i32>> {
        let mut found = T::default();
        // A single thing is answered by itself; the acknowledgement says that nothing more comes.
        Ok(self.ask(kind, NLM_F_ACK, &body, |bytes| each(&mut found, bytes))?.map(|_| found))
    }

    /// Says whether the answer is whole.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &impl Fn(&mut Writer),
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<Result<bool, i32>> {
        let mut messages = Messages::default();
        messages.push(kind, flags, body);
        self.sequence = self.sequence.wrapping_add(1);
        messages.seal(0, self.sequence, false);
        self.socket.send(messages.bytes(0, 1), 0)?;
        let mut is_whole = true;
        loop {
            self.receive()?;
            for message in parse(&self.buffer).filter(|message| message.sequence == self.sequence) {
                is_whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let (code, _) = message.error();
                        return Ok(if code == 0 { Ok(is_whole) } else { Err(code) });
                    }
                    _ => each(message.payload),
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return received.map(drop),
            }
        }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

/// A message of a datagram.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn parse(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(buffer.length()).ok()?;
        let (kind, flags, sequence) = (buffer.message_type(), buffer.flags(), buffer.sequence_number());
        let payload = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, payload })
    })
}

impl Message<'_> {
    /// What an error, or the end of a dump, says. 0: all went well.
    fn error(&self) -> (i32, Option<String>) {
        let Some(code) = self.payload.first_chunk() else { return (0, None) };
        let has_text = self.flags & NLM_F_ACK_TLVS > 0 && self.flags & NLM_F_CAPPED > 0;
        let details = self.payload.get(4 + HEADER..).filter(|_| has_text).unwrap_or_default();
        let text = attributes(details).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG);
        let text = text.and_then(|(_, text)| read_text(text)).map(str::to_owned);
        (i32::from_ne_bytes(*code).saturating_neg(), text)
    }
}

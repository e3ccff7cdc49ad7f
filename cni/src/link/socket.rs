//! A socket of rtnetlink that blocks. The kernel does a request within `sendmsg`, and its answers are there when that
//! returns; requests of one datagram are done one after the other, each with its own answer.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use tollgate_nftables::attribute::{attributes, read_text};

use crate::error::Error;

/// rtnetlink of the network namespace that the socket was opened in.
pub struct Socket {
    socket: NetlinkSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Something that the kernel is to do.
pub struct Request {
    /// What that is, for an error: "cannot" goes before it.
    pub what: String,
    /// The message.
    pub message: RouteNetlinkMessage,
    /// Its flags, besides those of every request.
    pub flags: u16,
    /// An error that means that it is done already.
    pub done_already: i32,
}

/// What the kernel said.
#[derive(Debug)]
struct Refusal {
    code: i32,
    text: Option<String>,
}

/// More than the kernel puts into one datagram of a dump.
const DATAGRAM: usize = 64 << 10;
const NETLINK_HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

impl Socket {
    /// Opens one in the network namespace that the plugin is in, to which it stays bound.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Self> {
            let mut socket = NetlinkSocket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Dumps then leave out what was not asked for.
            let _ = socket.set_netlink_get_strict_chk(true);
            Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
        };
        open().map_err(|cause| Error::Kernel { what: "open a socket of rtnetlink".into(), cause })
    }

    /// Does these things in this order; the first that fails is told. All are tried.
    pub fn execute(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        if requests.is_empty() {
            return Ok(());
        }
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for Request { what, message, flags, done_already } in requests {
            self.sequence += 1;
            write(&mut bytes, message, flags | NLM_F_ACK, self.sequence);
            expected.push((what, done_already));
        }
        let failed = |cause| Error::Kernel { what: "speak with rtnetlink".into(), cause };
        self.socket.send(&bytes, 0).map_err(failed)?;
        let (mut answers, mut outcome) = (0, Ok(()));
        while answers < expected.len() {
            for (sequence, answer) in self.receive().map_err(failed)? {
                let index = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let Some((what, done_already)) = expected.get_mut(index) else { continue };
                match answer {
                    Answer::Done => answers += 1,
                    Answer::Refused(refusal) => {
                        answers += 1;
                        if outcome.is_ok() && -refusal.code != *done_already {
                            outcome = Err(Error::Kernel { what: std::mem::take(what), cause: refusal.into() });
                        }
                    }
                    Answer::Message(_) => {}
                }
            }
        }
        outcome
    }

    /// Asks for one thing; nothing if the kernel answers with the error `missing`.
    pub fn get(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        missing: &[i32],
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        let found = self.ask(message, NLM_F_ACK);
        match found {
            Ok(found) => Ok(found.into_iter().next()),
            Err(refusal) if missing.contains(&-refusal.code) => Ok(None),
            Err(refusal) => Err(Error::Kernel { what: what.into(), cause: refusal.into() }),
        }
    }

    /// Asks for all of something.
    pub fn dump(&mut self, what: &str, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.ask(message, NLM_F_DUMP).map_err(|refusal| Error::Kernel { what: what.into(), cause: refusal.into() })
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.sequence += 1;
        let mut bytes = Vec::new();
        write(&mut bytes, message, flags, self.sequence);
        let failed = |error: io::Error| Refusal { code: -error.raw_os_error().unwrap_or_default(), text: None };
        self.socket.send(&bytes, 0).map_err(failed)?;
        let mut found = Vec::new();
        loop {
            for (sequence, answer) in self.receive().map_err(failed)? {
                if sequence != self.sequence {
                    continue;
                }
                match answer {
                    Answer::Message(message) => found.push(message),
                    Answer::Done => return Ok(found),
                    Answer::Refused(refusal) => return Err(refusal),
                }
            }
        }
    }

    /// The messages of the next datagram, with their numbers.
    fn receive(&mut self) -> io::Result<Vec<(u32, Answer)>> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let (mut answers, mut rest) = (Vec::new(), &self.buffer[..]);
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let length = usize::try_from(message.length()).unwrap_or(rest.len());
            let (flags, sequence) = (message.flags(), message.sequence_number());
            let parsed: NetlinkMessage<RouteNetlinkMessage> =
                NetlinkMessage::deserialize(rest).map_err(|error| io::Error::other(error.to_string()))?;
            match parsed.payload {
                NetlinkPayload::InnerMessage(message) => answers.push((sequence, Answer::Message(message))),
                NetlinkPayload::Done(_) => answers.push((sequence, Answer::Done)),
                NetlinkPayload::Error(error) => answers.push((
                    sequence,
                    match error.code {
                        None => Answer::Done,
                        Some(code) => Answer::Refused(Refusal { code: code.get(), text: text(&error.header, flags) }),
                    },
                )),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(answers)
    }
}

enum Answer {
    Message(RouteNetlinkMessage),
    Done,
    Refused(Refusal),
}

/// What the kernel says besides the number of an error, behind the header of the message that it is about.
fn text(header: &[u8], flags: u16) -> Option<String> {
    let has_text = flags & NLM_F_ACK_TLVS > 0 && flags & NLM_F_CAPPED > 0;
    let details = header.get(NETLINK_HEADER..).filter(|_| has_text)?;
    let (_, text) = attributes(details).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?;
    read_text(text).map(str::to_owned)
}

/// A request's bytes, for whoever sends it otherwise.
pub(super) fn bytes(request: Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, request.message, request.flags | NLM_F_ACK, 1);
    bytes
}

fn write(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..start + message.buffer_len()]);
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let error = Self::from_raw_os_error(-refusal.code);
        match refusal.text {
            None => error,
            Some(text) => Self::new(error.kind(), format!("{text} ({error})")),
        }
    }
}

//! Locks between calls that run at the same time.
//!
//! They are ranges of one file's bytes (`F_OFD_SETLK`): there may be as many as one likes without any file to clean up,
//! and the kernel lets go of them when their holder ends in any way.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use sha2::{Digest, Sha256};

use super::STATE_DIR;
use crate::env::Attachment;
use crate::error::Error;

/// A lock, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// What can be locked.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// All that is done to one attachment.
    Attachment(&'a Attachment),
    /// A network's leases. Whoever has it does nothing but read and write their file.
    Leases(&'a str),
}

/// How long a call waits for another one about the same container and interface. Runtimes wait longer than that: 2 minutes
/// and more.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Lock {
    /// Waits until it is free.
    ///
    /// # Errors
    /// If an attachment's is not free after a minute.
    pub fn wait(what: What<'_>) -> Result<Self, Error> {
        let What::Attachment(attachment) = what else {
            let file = open()?;
            return set(&file, true, what).map(|_| Self { _file: file });
        };
        Self::within(PATIENCE, what)?.ok_or_else(|| {
            let Attachment { container_id, ifname } = attachment.clone();
            Error::Busy { container: container_id, ifname, seconds: PATIENCE.as_secs() }
        })
    }

    /// Waits until it is free, but no longer than that.
    pub fn within(patience: Duration, what: What<'_>) -> Result<Option<Self>, Error> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(lock) = Self::try_now(what)? {
                return Ok(Some(lock));
            }
            if start.elapsed() > patience {
                return Ok(None);
            }
            thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Takes it if it is free.
    pub fn try_now(what: What<'_>) -> Result<Option<Self>, Error> {
        let file = open()?;
        Ok(set(&file, false, what)?.then_some(Self { _file: file }))
    }
}

fn open() -> Result<File, Error> {
    let path = Path::new(STATE_DIR).join("lock");
    super::create(&path).map_err(|cause| Error::file("open", path, cause))
}

/// `F_WRLCK` and `SEEK_SET`, which libc has as wider numbers than the structure they are for.
const WRITE: libc::c_short = 1;
const START: libc::c_short = 0;

/// Whether the lock was had.
fn set(file: &File, waits: bool, what: What<'_>) -> Result<bool, Error> {
    let range = libc::flock { l_type: WRITE, l_whence: START, l_start: what.byte(), l_len: 1, l_pid: 0 };
    loop {
        let command = if waits { FcntlArg::F_OFD_SETLKW(&range) } else { FcntlArg::F_OFD_SETLK(&range) };
        match fcntl(file, command) {
            Ok(_) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::file("lock", Path::new(STATE_DIR).join("lock"), errno.into())),
        }
    }
}

impl What<'_> {
    /// The byte that stands for it: 62 bits of a hash.
    fn byte(self) -> i64 {
        let hash = match self {
            Self::Attachment(Attachment { container_id, ifname }) => {
                Sha256::digest(format!("attachment {container_id} {ifname}"))
            }
            Self::Leases(network) => Sha256::digest(format!("leases {network}")),
        };
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash);
        i64::from_be_bytes([a & 0x3f, b, c, d, e, f, g, h])
    }
}

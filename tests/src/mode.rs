//! The backends under test.

use std::fmt;

/// A backend: what `--proxy-mode` chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// nftables.
    Nftables,
}

impl Mode {
    /// Every backend that the behaviour is tested on.
    pub const ALL: &[Self] = &[Self::Nftables];

    /// The mode of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mode| mode.name() == name)
    }

    /// The word for `--proxy-mode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

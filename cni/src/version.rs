//! The versions of the CNI specification that the plugin speaks.

use std::fmt;

/// A version of the CNI specification. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.4.0: brought CHECK.
    V0_4_0,
    /// 1.0.0: addresses have no `version` any more.
    V1_0_0,
    /// 1.1.0: brought GC and STATUS, and `mtu` in results.
    V1_1_0,
}

impl SpecVersion {
    /// All of them, the oldest first.
    pub const ALL: [Self; 3] = [Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What is spoken with a caller of whom nothing is known.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As a configuration has it in `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of that text, if it is one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// All of them, for a sentence.
    pub fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

//! The 32-bit word that a packet carries in `meta priority` on its way through the table.
//!
//! ```text
//! bits 31..14  the number of the Service port, 1 to 262,142
//! bits 13..0   in frontends: a kind (1 to 15) or a class (16 to 8,191)
//!              in slot keys: bit 13 = local pool, the others zero
//!              in pools' values: bit 13 = local pool, with a class
//!              in affinity: an endpoint's ref (16 to 16,383)
//! ```
//!
//! nft writes such a word as two hexadecimal halves: number 1 with class 18 is `0:4012`; zero is `none`.

use std::fmt;
use std::str::FromStr;

use tollgate_model::name::Protocol;

/// Where the number of a Service port begins.
const NUMBER_SHIFT: u32 = 14;
/// The bits below it.
const LOW: u32 = (1 << NUMBER_SHIFT) - 1;
/// Bit 13: the local pool.
const LOCAL: u16 = 0x2000;

/// A word, as packets and map elements hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Word(u32);

/// Which of a Service port's two endpoint sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PoolKind {
    /// The Cluster set.
    Cluster,
    /// The Local set.
    Local,
}

/// What becomes of a packet once its pool is known. Each class in use has a chain, named in the map `picks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Balance {
    pub(crate) pool: PoolKind,
    pub(crate) protocol: Protocol,
    /// Endpoints in the pool, at least one.
    pub(crate) count: u32,
    /// Seconds that a client stays with its endpoint.
    pub(crate) timeout: Option<u32>,
}

/// How packets to a frontend find their pool, where the frontend's word does not name the class itself. Of the external
/// ones, bit 0 is the Local policy and bit 2 the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub(crate) enum Kind {
    /// ClusterIP under `internalTrafficPolicy: Local`.
    VipLocal = 1,
    /// NodePort, external IP or load-balancer IP under `externalTrafficPolicy: Cluster`.
    ExtCluster = 2,
    /// The same under `externalTrafficPolicy: Local`.
    ExtLocal = 3,
    /// `ExtCluster` behind `loadBalancerSourceRanges`.
    GuardedCluster = 6,
    /// `ExtLocal` behind `loadBalancerSourceRanges`.
    GuardedLocal = 7,
}

/// The numbers of classes, and the limits of every part of the word.
pub(crate) mod low {
    /// Class: answer as a closed port does.
    pub(crate) const REFUSE: u16 = 16;
    /// Class: drop without a word.
    pub(crate) const DROP: u16 = 17;
    /// The first class that has a [`Balance`](super::Balance).
    pub(crate) const FIRST_BALANCE: u16 = 18;
    /// The last one.
    pub(crate) const LAST_CLASS: u16 = 0x1fff;
    /// The first ref of an endpoint; below it, the rules see "no endpoint remembered".
    pub(crate) const FIRST_REF: u16 = 16;
    /// The last one.
    pub(crate) const LAST_REF: u16 = 0x3fff;
}

/// The largest number of a Service port: one less than fits, because nft prints the word of all ones as `root`.
pub(crate) const LAST_NUMBER: u32 = (u32::MAX >> NUMBER_SHIFT) - 1;
/// How many slots a pool can have: the key of a slot map is `numgen random mod 65536`.
pub(crate) const MAX_SLOTS: usize = 65_536;

impl Word {
    /// Joins the two parts.
    pub(crate) fn new(number: u32, low: u16) -> Self {
        debug_assert!(u32::from(low) <= LOW, "{low} has more than 14 bits");
        Self(number << NUMBER_SHIFT | u32::from(low))
    }

    /// The word that keys a pool's slots.
    pub(crate) fn pool(number: u32, pool: PoolKind) -> Self {
        Self::new(number, pool.bit())
    }

    /// The key of a kind in `kinds`.
    pub(crate) fn kind(kind: Kind) -> Self {
        Self::new(0, kind.low())
    }

    /// The key of a class in `picks`.
    pub(crate) fn class(class: u16) -> Self {
        Self::new(0, class)
    }

    /// All 32 bits of it.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// The word of these bits.
    pub(crate) fn of(bits: u32) -> Self {
        Self(bits)
    }

    /// The Service port's number; 0 is none.
    pub(crate) fn number(self) -> u32 {
        self.0 >> NUMBER_SHIFT
    }

    /// The other part.
    pub(crate) fn low(self) -> u16 {
        u16::try_from(self.0 & LOW).unwrap_or(u16::MAX)
    }
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::VipLocal, Self::ExtCluster, Self::ExtLocal, Self::GuardedCluster, Self::GuardedLocal];

    /// Its number: the lower part of a frontend's word.
    pub(crate) fn low(self) -> u16 {
        self as u16
    }

    /// The kind of that number.
    pub(crate) fn of(low: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.low() == low)
    }

    /// Whether only some sources may dial it.
    pub(crate) fn is_guarded(self) -> bool {
        matches!(self, Self::GuardedCluster | Self::GuardedLocal)
    }

    /// Where its packets may end up.
    pub(crate) fn pools(self) -> &'static [PoolKind] {
        match self {
            Self::VipLocal => &[PoolKind::Local],
            Self::ExtCluster | Self::GuardedCluster => &[PoolKind::Cluster],
            // Local pods and the node use the Cluster set.
            Self::ExtLocal | Self::GuardedLocal => &[PoolKind::Cluster, PoolKind::Local],
        }
    }
}

impl PoolKind {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Cluster, Self::Local];

    /// How the pool shows in the lower part of a word.
    pub(crate) fn bit(self) -> u16 {
        match self {
            Self::Cluster => 0,
            Self::Local => LOCAL,
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("none"),
            u32::MAX => f.write_str("root"),
            word => write!(f, "{:x}:{:x}", word >> 16, word & 0xffff),
        }
    }
}

/// Not a word as nft prints them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAWord;

impl FromStr for Word {
    type Err = NotAWord;

    fn from_str(text: &str) -> Result<Self, NotAWord> {
        match text {
            "none" => return Ok(Self(0)),
            "root" => return Ok(Self(u32::MAX)),
            _ => {}
        }
        let (high, low) = text.split_once(':').ok_or(NotAWord)?;
        let half = |text| u16::from_str_radix(text, 16).map(u32::from).map_err(|_| NotAWord);
        Ok(Self(half(high)? << 16 | half(low)?))
    }
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_print_as_nft_writes_them() {
        assert_eq!(Word::new(1, 18).to_string(), "0:4012");
        assert_eq!(Word::new(2, 0x2013).to_string(), "0:a013");
        assert_eq!(Word::new(10, 16).to_string(), "2:8010");
        assert_eq!(Word::new(0, 0).to_string(), "none");
        assert_eq!("root".parse(), Ok(Word(u32::MAX)));
        assert_eq!("10".parse::<Word>(), Err(NotAWord));
    }

    #[test]
    fn no_word_of_ours_is_nfts_root() {
        assert_ne!(Word::new(LAST_NUMBER, low::LAST_REF).to_string(), "root");
    }

    proptest! {
        #[test]
        fn a_word_survives_its_text(word: u32) {
            prop_assert_eq!(Word(word).to_string().parse(), Ok(Word(word)));
        }

        #[test]
        fn the_parts_come_apart_again(number in 0..=LAST_NUMBER, low in 0_u16..=low::LAST_REF) {
            let word = Word::new(number, low);
            prop_assert_eq!((word.number(), word.low()), (number, low));
        }
    }
}

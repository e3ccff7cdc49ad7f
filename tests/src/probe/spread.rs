//! Who answers, over many dials.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use futures::StreamExt;
use futures::stream::iter;

use super::outcome::{Outcome, Reply};
use super::{Probe, Protocol};

/// Dials under way at one time: enough to be quick, few enough to leave the machine to others.
const CONCURRENT: usize = 16;

/// Who answered how often, and what else came.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    /// Answers by pod.
    pub by: BTreeMap<String, usize>,
    /// Everything that was no answer.
    pub others: Vec<Outcome>,
}

impl Spread {
    /// Fails if a dial went unanswered.
    pub fn ensure_all_answered(&self) -> Result<()> {
        ensure!(self.others.is_empty(), "{} dials had no answer, the first: {}", self.others.len(), self.others[0]);
        Ok(())
    }

    /// Fails unless exactly these pods answered, and every dial was answered.
    pub fn ensure_only(&self, pods: &[&str]) -> Result<()> {
        self.ensure_all_answered()?;
        let answered: Vec<&str> = self.by.keys().map(String::as_str).collect();
        let mut expected = pods.to_vec();
        expected.sort_unstable();
        ensure!(answered == expected, "expected answers from {expected:?}: {self}");
        Ok(())
    }

    /// Fails unless each of these pods answered within 5 standard deviations of its even share.
    pub fn ensure_even(&self, pods: &[&str]) -> Result<()> {
        self.ensure_only(pods)?;
        let total: usize = self.by.values().sum();
        #[expect(clippy::cast_precision_loss, reason = "thousands, not 2^52")]
        let (total, share) = (total as f64, 1.0 / pods.len() as f64);
        let (mean, deviation) = (total * share, (total * share * (1.0 - share)).sqrt());
        for (pod, &count) in &self.by {
            #[expect(clippy::cast_precision_loss, reason = "thousands, not 2^52")]
            let off = (count as f64 - mean).abs();
            ensure!(
                off <= 5.0 * deviation,
                "{pod} is {off:.0} off the mean {mean:.0} (deviation {deviation:.1}): {self}"
            );
        }
        Ok(())
    }

    fn add(&mut self, reply: Reply) {
        match reply.outcome {
            Outcome::Answered(answer) => *self.by.entry(answer.by).or_default() += 1,
            other => self.others.push(other),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (pod, count) in &self.by {
            write!(f, "{pod} {count}, ")?;
        }
        write!(f, "no answer {}", self.others.len())
    }
}

pub(super) async fn dial(probe: &Probe, protocol: Protocol, to: SocketAddr, count: usize) -> Spread {
    let dials = iter(0..count).map(|_| probe.dial_async(protocol, to)).buffer_unordered(CONCURRENT);
    dials
        .fold(Spread::default(), async |mut spread, reply| {
            spread.add(reply);
            spread
        })
        .await
}

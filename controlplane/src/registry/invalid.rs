//! What is wrong with an object: every finding with its field, value and reason, all of them at once.

use std::fmt;

use serde_json::Value;

/// An object that can't be accepted, and each reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The object, as far as it can be named: `service default/web`.
    pub object: String,
    /// At least one.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path of the field: `spec.ports[0].port`.
    pub field: String,
    /// What the field holds, as JSON; `None` where nothing is there.
    pub value: Option<String>,
    /// What would have been right: `must be between 1 and 65535`.
    pub reason: String,
}

/// Collects findings about one object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

/// Longer values are cut in messages.
const SHOWN: usize = 120;
/// Names of objects and fields are cut later: with a DNS name and a label in them they may be as long as this.
const NAMED: usize = 400;
/// Findings are told until the message has so many bytes, and those after them are counted: a message has to reach the
/// client, and nobody reads thousands.
const TOLD: usize = 3000;

// === impl Findings ===

impl Findings {
    /// The field holds something wrong.
    pub(crate) fn wrong(&mut self, field: impl Into<String>, value: impl Into<Value>, reason: impl Into<String>) {
        let value = cut(value.into().to_string(), SHOWN);
        self.0.push(Finding { field: cut(field.into(), NAMED), value: Some(value), reason: reason.into() });
    }

    /// The field is absent, or its presence itself is wrong.
    pub(crate) fn missing(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Finding { field: cut(field.into(), NAMED), value: None, reason: reason.into() });
    }

    /// Records a check's reason, where it has one.
    pub(crate) fn check(&mut self, field: impl Into<String>, value: &str, result: Result<(), impl Into<String>>) {
        if let Err(reason) = result {
            self.wrong(field, value, reason);
        }
    }

    /// The field holds none of the words that are known there.
    pub(crate) fn one_of(&mut self, field: impl Into<String>, value: Option<&str>, known: &[&str]) {
        if let Some(value) = value.filter(|value| !known.contains(value)) {
            self.wrong(field, value, format!("must be one of {}", known.join(", ")));
        }
    }

    /// The field holds no port.
    pub(crate) fn port(&mut self, field: impl Into<String>, number: i32) {
        if !(1..=65535).contains(&number) {
            self.wrong(field, number, "must be between 1 and 65535");
        }
    }

    /// Takes up what was found elsewhere about the same object.
    pub(crate) fn extend(&mut self, other: Findings) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was found.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing was found, or all of it as an error about `object`.
    pub(crate) fn into_result(self, object: impl fmt::Display) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(Invalid { object: object.to_string(), findings: self.0 }) }
    }
}

// === impl Invalid ===

impl Invalid {
    /// A single finding.
    pub(crate) fn one(
        object: impl fmt::Display,
        field: impl Into<String>,
        value: Option<Value>,
        reason: impl Into<String>,
    ) -> Self {
        let mut findings = Findings::default();
        match value {
            Some(value) => findings.wrong(field, value, reason),
            None => findings.missing(field, reason),
        }
        Invalid { object: object.to_string(), findings: findings.0 }
    }
}

impl std::error::Error for Invalid {}

/// `service default/web is invalid: spec.ports[0].port: 70000: must be between 1 and 65535; ...`
impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is invalid: ", cut(self.object.clone(), NAMED))?;
        let mut told = 0;
        for (index, finding) in self.findings.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            if told > TOLD {
                return write!(f, "and {} more", self.findings.len() - index);
            }
            let finding = finding.to_string();
            told += finding.len();
            f.write_str(&finding)?;
        }
        Ok(())
    }
}

fn cut(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}: {value}: {}", self.field, self.reason),
            None => write!(f, "{}: {}", self.field, self.reason),
        }
    }
}

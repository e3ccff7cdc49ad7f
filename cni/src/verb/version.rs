//! VERSION: which versions of the specification are spoken.

use serde_json::{Value, json};

use crate::version::SpecVersion;

/// Answers in the version that was asked in, whichever that is.
pub(super) fn version(stdin: &[u8]) -> Value {
    let asked = serde_json::from_slice::<Value>(stdin).unwrap_or_default();
    let asked = asked["cniVersion"].as_str().unwrap_or(SpecVersion::NEWEST.as_str());
    json!({ "cniVersion": asked, "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str) })
}

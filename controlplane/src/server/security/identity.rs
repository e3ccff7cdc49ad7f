//! A user and his groups, as Kubernetes knows them.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The name, such as `system:node:worker-1`.
    pub(crate) user: String,
    /// The groups, such as `system:nodes`.
    pub(crate) groups: BTreeSet<String>,
}

// === impl Identity ===

impl Identity {
    /// Everyone, where nobody is asked: Kubernetes' name for it.
    pub(crate) fn unsecured() -> Self {
        Identity { user: "system:unsecured".to_owned(), groups: [super::role::MASTERS.to_owned()].into() }
    }

    /// The common name and the organizations of a certificate's subject, and how long the certificate is valid.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Result<(Self, SystemTime), String> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|error| format!("it can't be read: {error}"))?;
        let subject = certificate.subject();
        let mut names = subject.iter_common_name().map(text);
        let user = match (names.next(), names.next()) {
            (Some(Some(user)), None) if !user.is_empty() => user,
            (None, _) => return Err("its subject has no common name (CN) that would be the user".to_owned()),
            _ => return Err("the common name (CN) in its subject is not one readable name".to_owned()),
        };
        let groups = subject.iter_organization().filter_map(text).collect();
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok((Identity { user, groups }, SystemTime::UNIX_EPOCH + Duration::from_secs(not_after)))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {:?} ", self.user)?;
        let groups: Vec<&str> = self.groups.iter().map(String::as_str).collect();
        match groups[..] {
            [] => f.write_str("(no group)"),
            [group] => write!(f, "(group {group})"),
            _ => write!(f, "(groups {})", groups.join(", ")),
        }
    }
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    attribute.as_str().ok().map(str::to_owned)
}

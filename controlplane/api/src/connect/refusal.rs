//! What TLS says when it fails, in words that name the file and the remedy.

use std::fmt;
use std::path::Path;

use http::Uri;
use rustls::{AlertDescription, CertificateError};

use super::access::{Access, shown};

/// Why TLS ended a connection, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

/// Who talks to whom, with which files.
#[derive(Debug)]
pub(super) struct Parties {
    pub(super) server: Uri,
    pub(super) access: Access,
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Parties ===

impl Parties {
    /// The server's end closed, or said something that is not TLS.
    pub(super) fn no_tls(&self) -> Refusal {
        let server = shown(&self.server);
        Refusal(format!(
            "{server} does not speak TLS: is its address http:// and not https://, or another program there?"
        ))
    }

    /// The server answered with TLS to what was none.
    pub(super) fn needs_tls(&self) -> Refusal {
        let server = shown(&self.server);
        Refusal(format!("{server} speaks TLS only: give its address as https://, with --certificate-authority"))
    }

    pub(super) fn explain(&self, error: &rustls::Error) -> Refusal {
        match error {
            rustls::Error::InvalidCertificate(reason) => self.untrusted(reason),
            rustls::Error::AlertReceived(alert) => self.refused(*alert),
            rustls::Error::InvalidMessage(_) => self.no_tls(),
            other => Refusal(format!("TLS with {} failed: {other}", shown(&self.server))),
        }
    }

    /// The server is not who it should be.
    fn untrusted(&self, reason: &CertificateError) -> Refusal {
        let authority = named(self.access.certificate_authority.as_deref());
        let reason = match reason {
            // The second: an authority of the same name with another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "none of the CAs in {authority} has issued its certificate; \
                 give the CA of this control plane as --certificate-authority"
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired; issue a new one there (tollgate-controlplane certs), \
                 or set this machine's clock right"
                    .to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet; is this machine's clock right?".to_owned()
            }
            CertificateError::NotValidForName => self.other_name(""),
            CertificateError::NotValidForNameContext { presented, .. } => {
                self.other_name(&format!(" ({})", presented.join(", ")))
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "its certificate is not one of a server".to_owned()
            }
            other => other.to_string(),
        };
        Refusal(format!("{} is not trusted: {reason}", shown(&self.server)))
    }

    fn other_name(&self, names: &str) -> String {
        let host = self.server.host().unwrap_or_default();
        format!(
            "its certificate is for other names{names} than {host}; connect to one of these, \
             or issue one with --server-name {host}"
        )
    }

    /// The server does not take the client's certificate.
    fn refused(&self, alert: AlertDescription) -> Refusal {
        let reason = match alert {
            AlertDescription::CertificateExpired => "it has expired or is not valid yet; have a new one issued",
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "none of the server's client CAs has issued it; have one issued with the control plane's CA"
            }
            AlertDescription::UnsupportedCertificate => "it is not one of a client; have one issued for a client",
            AlertDescription::CertificateRequired => "it is required, and --client-certificate gives none",
            AlertDescription::CertificateRevoked => "it is revoked; have a new one issued",
            AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => "the server can't read it",
            other => return Refusal(format!("{} ended TLS: {other:?}", shown(&self.server))),
        };
        let certificate = named(self.access.client_certificate.as_deref());
        Refusal(format!("{} refuses the client certificate {certificate}: {reason}", shown(&self.server)))
    }
}

fn named(path: Option<&Path>) -> String {
    path.map_or_else(|| "(none)".to_owned(), |path| path.display().to_string())
}

//! Who may do what.
//!
//! ```text
//!  connection ── incoming (TLS) ──▶ Peer ──┐
//!  request ──────── bearer token ──────────┴─▶ Authenticator ──▶ Caller ──▶ may(action)   ──▶ the call
//!                                                UNAUTHENTICATED            PERMISSION_DENIED
//! ```
//! The words are Kubernetes': a user with groups, out of a client certificate (CN and O) or a token file. An identity
//! counts for as long as it would be accepted anew: a call on an old connection and a watch that goes on are asked again
//! when the files change or a certificate expires.

mod authenticator;
mod credentials;
mod identity;
mod incoming;
pub(crate) mod role;
mod token;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

pub(super) use authenticator::{Authenticator, caller};
pub(super) use credentials::{Reloader, open};
pub(super) use incoming::Incoming;
pub(super) use role::Action;

/// How the listener is protected: the files, named as kube-apiserver names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// The server's certificate and those between it and its CA, and its key: with them the listener speaks TLS.
    pub tls: Option<ServerFiles>,
    /// The CAs whose certificates say who a client is.
    pub client_ca_file: Option<PathBuf>,
    /// Who has which bearer token.
    pub token_auth_file: Option<PathBuf>,
    /// Serve whoever reaches the listener.
    pub insecure: bool,
}

/// What a server shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Certificates, the server's own first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A listener that is not protected as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Insecure {
    /// Others can reach it, and it does not ask who they are.
    #[error(
        "{0} can be reached from other machines, and whoever reaches it could read and write everything: \
         give --tls-cert-file, --tls-private-key-file and --client-ca-file (`tollgate-controlplane certs` makes all three), \
         or --insecure if nobody else can reach it"
    )]
    Open(IpAddr),
    /// TLS that hides the traffic, and still serves everyone.
    #[error(
        "TLS alone keeps nobody out: give --client-ca-file or --token-auth-file, which say who a client is, \
         or --insecure to serve whoever reaches the listener"
    )]
    Anonymous,
    /// A client certificate is a part of TLS.
    #[error(
        "--client-ca-file needs --tls-cert-file and --tls-private-key-file: without TLS no client shows a certificate"
    )]
    CaWithoutTls,
    /// Tokens that others can read.
    #[error(
        "--token-auth-file needs --tls-cert-file and --tls-private-key-file: {0} can be reached from other machines, \
         and tokens would go there readable on the way"
    )]
    OpenTokens(IpAddr),
    /// To ask and not to ask.
    #[error("--insecure serves whoever reaches the listener, and {0} asks who that is: give one of them")]
    Contradiction(&'static str),
}

/// Why nobody can be asked who he is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener would not be protected as it must be.
    #[error(transparent)]
    Insecure(#[from] Insecure),
    /// A file can't be used.
    #[error(transparent)]
    File(#[from] tollgate_api::pem::Error),
    /// SIGHUP can't be listened to.
    #[error("cannot catch SIGHUP")]
    Signal(#[source] std::io::Error),
}

// === impl Security ===

impl Security {
    /// Whether a listener on an address may be protected like this.
    ///
    /// # Errors
    /// When somebody could do what he should not.
    pub fn check(&self, listen: IpAddr) -> Result<(), Insecure> {
        let is_local = listen.to_canonical().is_loopback();
        let asks = self.asked_by();
        match (self.insecure, asks) {
            (true, Some(flag)) => return Err(Insecure::Contradiction(flag)),
            (true, None) => return Ok(()),
            (false, _) => {}
        }
        if self.tls.is_some() {
            return if asks.is_some() { Ok(()) } else { Err(Insecure::Anonymous) };
        }
        if self.client_ca_file.is_some() {
            return Err(Insecure::CaWithoutTls);
        }
        match (is_local, asks) {
            (true, _) => Ok(()),
            (false, Some(_)) => Err(Insecure::OpenTokens(listen)),
            (false, None) => Err(Insecure::Open(listen)),
        }
    }

    /// The first flag by which clients are asked who they are; `None`: they are not.
    fn asked_by(&self) -> Option<&'static str> {
        if self.client_ca_file.is_some() {
            return Some("--client-ca-file");
        }
        self.token_auth_file.is_some().then_some("--token-auth-file")
    }
}

/// For the log: what protects the listener.
impl fmt::Display for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls.is_some() { "TLS" } else { "no TLS" };
        let clients = match (&self.client_ca_file, &self.token_auth_file) {
            (Some(_), Some(_)) => "client certificates or tokens",
            (Some(_), None) => "client certificates",
            (None, Some(_)) => "tokens",
            (None, None) => "no authentication",
        };
        write!(f, "{tls}, {clients}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_lets_strangers_in_is_refused() {
        let security = |words: &str| Security {
            tls: words.contains("tls").then(|| ServerFiles { certificate: "c".into(), key: "k".into() }),
            client_ca_file: words.contains("ca").then(|| "ca".into()),
            token_auth_file: words.contains("tokens").then(|| "t".into()),
            insecure: words.contains("insecure"),
        };
        let (local, any) = ("127.0.0.1", "0.0.0.0");
        for (listen, words, expected) in [
            (local, "", "ok"),
            ("::1", "", "ok"),
            ("::ffff:127.0.0.1", "", "ok"),
            (local, "tokens", "ok"),
            (any, "tls ca", "ok"),
            (any, "tls tokens", "ok"),
            (any, "insecure", "ok"),
            (any, "tls insecure", "ok"),
            (any, "", "0.0.0.0 can be reached from other machines, and whoever"),
            ("::", "", ":: can be reached from other machines"),
            ("192.0.2.1", "", "192.0.2.1 can be reached"),
            (any, "tls", "TLS alone keeps nobody out"),
            (local, "tls", "TLS alone keeps nobody out"),
            (local, "ca", "--client-ca-file needs --tls-cert-file"),
            (any, "tokens", "--token-auth-file needs --tls-cert-file"),
            (any, "tokens insecure", "and --token-auth-file asks who that is"),
            (any, "tls ca insecure", "and --client-ca-file asks who that is"),
        ] {
            let checked = security(words).check(listen.parse().unwrap());
            let shown = checked.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
            assert!(
                shown.starts_with(expected) || (expected.starts_with("and ") && shown.contains(expected)),
                "{listen} {words}: {shown}"
            );
        }
    }
}

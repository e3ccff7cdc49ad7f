//! With what a client of the control plane shows who it is, and knows the server.

use std::path::{Path, PathBuf};

use http::HeaderValue;
use http::uri::{Scheme, Uri};
use rustls::ClientConfig;

use crate::pem::{self, File};

/// The files of a client. They are read at each connection, so that they can be replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The authorities that the server's certificate is to come from.
    pub certificate_authority: Option<PathBuf>,
    /// The client's certificate.
    pub client_certificate: Option<PathBuf>,
    /// The certificate's key.
    pub client_key: Option<PathBuf>,
    /// A bearer token, in place of a certificate.
    pub token_file: Option<PathBuf>,
}

/// An address and files that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Neither http nor https.
    #[error("{0} must look like https://HOST:PORT, or http://HOST:PORT")]
    Scheme(String),
    /// A server that can't be told from another.
    #[error("{0} needs --certificate-authority FILE: the CA that the server's certificate is to come from")]
    NoAuthority(String),
    /// Files that only TLS has a use for.
    #[error("{0} has no TLS, so that --{1} would do nothing: give the address as https://")]
    NoTls(String, &'static str),
    /// A token in the clear.
    #[error("the token would go to {0} without TLS, readable on the way: give the address as https://")]
    OpenToken(String),
    /// One of two.
    #[error("--{0} needs --{1}")]
    Half(&'static str, &'static str),
}

// === impl Access ===

impl Access {
    /// Whether the files go with the server's address, and with each other.
    ///
    /// # Errors
    /// When TLS is meant and not to be had, or the other way round, or one of the two halves of an identity is missing.
    pub fn check(&self, server: &Uri) -> Result<(), Invalid> {
        let Access { certificate_authority, client_certificate, client_key, token_file } = self;
        match (client_certificate, client_key) {
            (Some(_), None) => return Err(Invalid::Half("client-certificate", "client-key")),
            (None, Some(_)) => return Err(Invalid::Half("client-key", "client-certificate")),
            _ => {}
        }
        let is_tls = server.scheme() == Some(&Scheme::HTTPS);
        if server.host().is_none() || (!is_tls && server.scheme() != Some(&Scheme::HTTP)) {
            return Err(Invalid::Scheme(shown(server)));
        }
        if is_tls {
            return match certificate_authority {
                Some(_) => Ok(()),
                None => Err(Invalid::NoAuthority(shown(server))),
            };
        }
        for (file, flag) in
            [(certificate_authority, "certificate-authority"), (client_certificate, "client-certificate")]
        {
            if file.is_some() {
                return Err(Invalid::NoTls(shown(server), flag));
            }
        }
        if token_file.is_some() && !is_loopback(server) {
            return Err(Invalid::OpenToken(shown(server)));
        }
        Ok(())
    }

    /// The files with secrets that every user of the machine can read, each with its mode.
    pub fn exposed(&self) -> impl Iterator<Item = (&Path, String)> {
        let secrets = [&self.client_key, &self.token_file].into_iter().filter_map(Option::as_deref);
        secrets.filter_map(|path| pem::exposed(path).map(|mode| (path, mode)))
    }

    /// What TLS is made with; `None` without an authority, which [`Access::check`] lets be for http alone.
    pub(super) fn tls(&self) -> Result<Option<ClientConfig>, pem::Error> {
        let Some(authority) = &self.certificate_authority else { return Ok(None) };
        let roots = File::read(authority, "certificate authority")?.roots()?;
        let builder = ClientConfig::builder_with_provider(pem::provider())
            .with_safe_default_protocol_versions()
            .expect("ring has the suites of TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let mut config = match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(key)) => {
                let certificate = File::read(certificate, "client certificate")?;
                let key = File::read(key, "client key")?;
                builder.with_client_auth_cert(certificate.certificates()?, key.private_key()?).map_err(|error| {
                    certificate.unusable(format!("it does not go with the key {}: {error}", key.path.display()))
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(config))
    }

    /// The header that says who asks.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, pem::Error> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let file = File::read(path, "token file")?;
        let mut header = HeaderValue::from_str(&format!("Bearer {}", file.token()?))
            .map_err(|error| file.unusable(error.to_string()))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

/// As people write it.
pub(super) fn shown(server: &Uri) -> String {
    server.to_string().trim_end_matches('/').to_owned()
}

fn is_loopback(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_files_must_go_together() {
        let access = |files: &[&str]| {
            let file = |name: &str| files.contains(&name).then(|| PathBuf::from("/f"));
            Access {
                certificate_authority: file("ca"),
                client_certificate: file("cert"),
                client_key: file("key"),
                token_file: file("token"),
            }
        };
        for (server, files, expected) in [
            ("http://192.0.2.1:1", &[][..], Ok(())),
            ("https://h:1", &["ca"], Ok(())),
            ("https://h:1", &["ca", "cert", "key"], Ok(())),
            ("https://h:1", &["ca", "token"], Ok(())),
            ("http://127.0.0.1:1", &["token"], Ok(())),
            ("http://[::1]:1", &["token"], Ok(())),
            ("https://h:1", &[], Err("needs --certificate-authority FILE")),
            ("https://h:1", &["ca", "cert"], Err("--client-certificate needs --client-key")),
            ("https://h:1", &["ca", "key"], Err("--client-key needs --client-certificate")),
            ("http://h:1", &["ca"], Err("has no TLS, so that --certificate-authority would do nothing")),
            ("http://h:1", &["cert", "key"], Err("has no TLS, so that --client-certificate would do nothing")),
            ("http://192.0.2.1:1", &["token"], Err("readable on the way")),
            ("ftp://h", &[], Err("must look like https://HOST:PORT")),
            ("/path", &[], Err("must look like https://HOST:PORT")),
        ] {
            let checked = access(files).check(&server.parse().unwrap()).map_err(|error| error.to_string());
            match (&checked, expected) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(expected)) if error.contains(expected) => {}
                _ => panic!("{server} {files:?}: {checked:?}"),
            }
        }
    }
}

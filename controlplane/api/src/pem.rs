//! Certificates and keys out of PEM files, for both ends of a connection: each error names the file.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A file as it was read, and what it is for: errors about its content name both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// What it is: `client certificate`.
    pub role: &'static str,
    /// What it held.
    pub content: Vec<u8>,
}

/// A file that does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("cannot read the {role} {}", .path.display())]
    Read {
        /// What it is.
        role: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds something else.
    #[error("cannot use the {role} {}: {reason}", .path.display())]
    Content {
        /// What it is.
        role: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The cryptography of TLS here, at both ends.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

// === impl File ===

impl File {
    /// Reads a file; `role` says what it is.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(path: &Path, role: &'static str) -> Result<Self, Error> {
        match std::fs::read(path) {
            Ok(content) => Ok(File { path: path.into(), role, content }),
            Err(source) => Err(Error::Read { role, path: path.into(), source }),
        }
    }

    /// The certificates in it, at least one.
    ///
    /// # Errors
    /// When there is none, or something that is no PEM.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.content).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => {
                Err(self.unusable("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"))
            }
            Ok(certificates) => Ok(certificates),
            Err(error) => Err(self.unusable(format!("it is no PEM: {error}"))),
        }
    }

    /// The certificate authorities in it, at least one.
    ///
    /// # Errors
    /// When there is none, or one that can't be read.
    pub fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.unusable(format!("a certificate in it is none: {error}")))?;
        }
        Ok(roots)
    }

    /// The private key in it.
    ///
    /// # Errors
    /// When there is none that is not encrypted.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(&self.content).map_err(|error| {
            let what = "it holds no private key in PEM that is not encrypted (-----BEGIN PRIVATE KEY-----)";
            self.unusable(format!("{what}: {error}"))
        })
    }

    /// The one word in it, as a token.
    ///
    /// # Errors
    /// When it is empty or has more than a line of visible ASCII.
    pub fn token(&self) -> Result<&str, Error> {
        let text = str::from_utf8(&self.content).map(str::trim).unwrap_or_default();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(self.unusable("it must hold one line: the token, of letters, digits and punctuation"));
        }
        Ok(text)
    }

    /// An error about its content.
    pub fn unusable(&self, reason: impl Into<String>) -> Error {
        Error::Content { role: self.role, path: self.path.clone(), reason: reason.into() }
    }
}

/// Whether every user of the machine can read a file; its mode then, such as `0644`. A file that is not there is no
/// answer's business.
#[must_use]
pub fn exposed(path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.permissions().mode() & 0o7777;
    (mode & 0o004 != 0).then(|| format!("{mode:04o}"))
}

//! CAs and certificates of tests: those that `certs` makes, and bad ones.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::ToSpan;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tollgate_controlplane::certs::{Request, make};
use tollgate_controlplane::client::Access;
use tollgate_controlplane::server::{Security, ServerFiles};

/// A CA that has issued certificates for a server, `operator`, the viewer `backup`, and the nodes `a` and `b`.
pub(crate) struct Pki(TempDir);

impl Pki {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        make(&Request {
            dir: dir.path().to_owned(),
            server_names: Vec::new(),
            operators: Vec::new(),
            viewers: words(&["backup"]),
            nodes: words(&["a", "b"]),
            validity: 1.day(),
        })
        .unwrap();
        Pki(dir)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A listener that asks for certificates of this CA.
    pub(crate) fn security(&self) -> Security {
        Security {
            tls: Some(ServerFiles { certificate: self.file("server.crt"), key: self.file("server.key") }),
            client_ca_file: Some(self.file("ca.crt")),
            ..Security::default()
        }
    }

    /// A client that knows this CA and shows nothing.
    pub(crate) fn stranger(&self) -> Access {
        Access { certificate_authority: Some(self.file("ca.crt")), ..Access::default() }
    }

    /// A client that shows the certificate of that file name.
    pub(crate) fn access(&self, stem: &str) -> Access {
        Access {
            client_certificate: Some(self.file(&format!("{stem}.crt"))),
            client_key: Some(self.file(&format!("{stem}.key"))),
            ..self.stranger()
        }
    }

    /// A certificate with a validity of its own, in seconds from now, and a subject of its own.
    pub(crate) fn issue(&self, stem: &str, subject: &[(DnType, &str)], valid: (i64, i64)) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        subject.iter().for_each(|(kind, value)| params.distinguished_name.push(kind.clone(), *value));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + Duration::seconds(valid.0), now + Duration::seconds(valid.1));
        let read = |name: &str| fs::read_to_string(self.file(name)).unwrap();
        let ca_key = KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&self.file(&format!("{stem}.crt")), &certificate.pem());
        write(&self.file(&format!("{stem}.key")), &key.serialize_pem());
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

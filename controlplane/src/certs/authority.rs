//! The certificate authority in its two files.

use std::path::Path;

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use tollgate_api::pem::File;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CLOCK_SKEW, Error, file, offset};

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
/// As kubeadm's.
const VALIDITY_YEARS: i64 = 10;

/// A CA that can issue certificates.
pub(super) struct Authority {
    pub(super) name: String,
    pub(super) not_after: Timestamp,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

// === impl Authority ===

impl Authority {
    /// The CA in a directory; `None`: there is none.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
        match (certificate.exists(), key.exists()) {
            (false, false) => return Ok(None),
            (true, false) => return Err(Error::HalfAuthority { present: certificate, missing: key }),
            (false, true) => return Err(Error::HalfAuthority { present: key, missing: certificate }),
            (true, true) => {}
        }
        let unusable = |reason: String| Error::Authority { dir: dir.to_owned(), reason };
        let read = |path: &Path| File::read(path, "CA").map_err(|error| unusable(crate::chain(&error)));
        let certificates = read(&certificate)?.certificates().map_err(|error| unusable(error.to_string()))?;
        let [own] = certificates.as_slice() else {
            return Err(unusable(format!("{CERTIFICATE} must hold one certificate")));
        };
        let key = read(&key)?.private_key().map_err(|error| unusable(error.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|error| unusable(format!("{KEY}: {error}")))?;
        let (_, parsed) =
            X509Certificate::from_der(own).map_err(|error| unusable(format!("{CERTIFICATE}: {error}")))?;
        if !parsed.is_ca() {
            return Err(unusable(format!("{CERTIFICATE} is not the certificate of a CA")));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(unusable(format!("{KEY} is not the key of {CERTIFICATE}")));
        }
        let name = parsed.subject().to_string();
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX);
        let issuer = Issuer::from_ca_cert_der(own, key).map_err(|error| unusable(error.to_string()))?;
        Ok(Some(Authority { name, not_after, issuer }))
    }

    /// Makes one. The key is the first file, and is never written over another.
    pub(super) fn make(dir: &Path, now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Two CAs of one name could not be told apart in an error.
        let id = uuid::Uuid::new_v4().simple().to_string();
        params.distinguished_name.push(DnType::CommonName, format!("Tollgate CA {}", &id[..8]));
        // For leaves only: whoever gets hold of one can issue nothing.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let end = now.to_zoned(TimeZone::UTC).saturating_add(VALIDITY_YEARS.years()).timestamp();
        (params.not_before, params.not_after) = (offset(now - CLOCK_SKEW), offset(end));
        let certificate = params.self_signed(&key).map_err(failed)?;
        file::create(&dir.join(KEY), &key.serialize_pem(), file::SECRET)?;
        file::create(&dir.join(CERTIFICATE), &certificate.pem(), file::PUBLIC)?;
        // As every later run does it.
        Authority::load(dir)?.ok_or_else(|| Error::Authority {
            dir: dir.to_owned(),
            reason: "it was removed while it was made".to_owned(),
        })
    }
}

fn failed(source: rcgen::Error) -> Error {
    Error::Certificate { subject: "the CA".to_owned(), source }
}

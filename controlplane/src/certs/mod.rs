//! `certs`: a certificate authority and the certificates of a first set-up, and more of them later.
//!
//! What a certificate says is what [`crate::server::Security`] reads there: the common name is the user, the
//! organizations are the groups.

mod authority;
mod file;
mod tell;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::{Span, Timestamp, tz::TimeZone};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;

use crate::registry::name::check_dns_1123_subdomain;
use crate::server::security::role;
use authority::Authority;
pub use file::Error as FileError;
pub use tell::tell;

/// Always names of a server's certificate: whoever is on its machine reaches it so.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// The user of the operator's certificate that a first set-up has.
const OPERATOR: &str = "operator";
/// Certificates are valid a little before they are made: clocks differ.
const CLOCK_SKEW: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// What to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where; the CA is there, or is made there.
    pub dir: PathBuf,
    /// DNS names and addresses at which clients reach the server.
    pub server_names: Vec<String>,
    /// Operators to make certificates for.
    pub operators: Vec<String>,
    /// Readers to make certificates for.
    pub viewers: Vec<String>,
    /// Nodes whose proxies to make certificates for.
    pub nodes: Vec<String>,
    /// How long the certificates are valid.
    pub validity: Span,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// Whether the CA was made, too.
    pub is_new_authority: bool,
    /// The CA's name.
    pub authority: String,
    /// How long the CA is valid.
    pub authority_not_after: Timestamp,
    /// In the order in which they were made.
    pub certificates: Vec<MadeCertificate>,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct MadeCertificate {
    /// Whose it is.
    pub subject: Subject,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// How long it is valid.
    pub not_after: Timestamp,
    /// Whether there was an earlier one of this name.
    pub is_renewed: bool,
}

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The control plane, under these names and addresses.
    Server(Vec<String>),
    /// Someone who may write everything.
    Operator(String),
    /// Someone who may read everything.
    Viewer(String),
    /// The proxy of a node.
    Node(String),
}

/// Why certificates can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that can't be in a certificate.
    #[error("{flag}: {name:?}: {reason}")]
    Name {
        /// The flag.
        flag: &'static str,
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No time at all, or more than a calendar has.
    #[error("validity: {0}: it must be a time from now that a calendar has, such as 90d, 1y or 8760h")]
    Validity(Span),
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The CA's certificate or key is there without the other.
    #[error("{} is there without {}: put that back, or take a directory without either for a new CA", .present.display(), .missing.display())]
    HalfAuthority {
        /// What is there.
        present: PathBuf,
        /// What is not.
        missing: PathBuf,
    },
    /// The CA's files hold something else.
    #[error("the CA in {} can't be used: {reason}", .dir.display())]
    Authority {
        /// Where it lies.
        dir: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Nothing was asked for.
    #[error("the CA in {} is there already; say what it should issue: --server-name, --operator, --viewer or --node", .0.display())]
    Nothing(PathBuf),
    /// A certificate can't be made.
    #[error("cannot make a certificate for {subject}")]
    Certificate {
        /// For whom.
        subject: String,
        /// Why not.
        source: rcgen::Error,
    },
}

/// Makes what is asked for. A CA that is there issues it; otherwise one is made, with a certificate for the server and one
/// for an operator. A CA's key is never replaced; other certificates of the same name are.
///
/// # Errors
/// When a name or the CA can't be used, or a file can't be written. What was made before stays.
pub fn make(request: &Request) -> Result<Made, Error> {
    let now = Timestamp::now();
    let not_after = now.to_zoned(TimeZone::UTC).checked_add(request.validity).map(|at| at.timestamp());
    let not_after = not_after.ok().filter(|at| *at > now).ok_or(Error::Validity(request.validity))?;
    check_names(request)?;
    file::ensure_dir(&request.dir)?;
    let found = Authority::load(&request.dir)?;
    let is_new_authority = found.is_none();
    let subjects = subjects(request, is_new_authority);
    if subjects.is_empty() {
        return Err(Error::Nothing(request.dir.clone()));
    }
    let authority = match found {
        Some(authority) => authority,
        None => Authority::make(&request.dir, now)?,
    };
    if authority.not_after <= now {
        return Err(Error::Authority {
            dir: request.dir.clone(),
            reason: format!("it has expired at {}; make a new one in another directory", authority.not_after),
        });
    }
    // A certificate is worth nothing once its CA has expired.
    let validity = (now - CLOCK_SKEW, not_after.min(authority.not_after));
    let issue = |subject| issue(&authority, &request.dir, subject, validity);
    let certificates = subjects.into_iter().map(issue).collect::<Result<_, _>>()?;
    let Authority { name, not_after, .. } = authority;
    Ok(Made { is_new_authority, authority: name, authority_not_after: not_after, certificates })
}

fn subjects(request: &Request, is_new_authority: bool) -> Vec<Subject> {
    let mut subjects = Vec::new();
    if is_new_authority || !request.server_names.is_empty() {
        let mut names: Vec<String> = LOCAL_NAMES.map(str::to_owned).to_vec();
        names.extend(request.server_names.iter().filter(|name| !LOCAL_NAMES.contains(&name.as_str())).cloned());
        subjects.push(Subject::Server(names));
    }
    if is_new_authority && request.operators.is_empty() {
        subjects.push(Subject::Operator(OPERATOR.to_owned()));
    }
    subjects.extend(request.operators.iter().cloned().map(Subject::Operator));
    subjects.extend(request.viewers.iter().cloned().map(Subject::Viewer));
    subjects.extend(request.nodes.iter().cloned().map(Subject::Node));
    subjects
}

fn issue(
    authority: &Authority,
    dir: &Path,
    subject: Subject,
    (not_before, not_after): (Timestamp, Timestamp),
) -> Result<MadeCertificate, Error> {
    let failed = |source| Error::Certificate { subject: subject.user(), source };
    let names = match &subject {
        Subject::Server(names) => names.clone(),
        _ => Vec::new(),
    };
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.user());
    if let Some(group) = subject.group() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match subject {
        Subject::Server(_) => ExtendedKeyUsagePurpose::ServerAuth,
        _ => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (offset(not_before), offset(not_after));
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, &authority.issuer).map_err(failed)?;

    let stem = subject.file_stem();
    let (certificate_path, key_path) = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
    let is_renewed = certificate_path.exists();
    file::replace(&key_path, &key.serialize_pem(), file::SECRET)?;
    file::replace(&certificate_path, &certificate.pem(), file::PUBLIC)?;
    Ok(MadeCertificate { subject, certificate: certificate_path, key: key_path, not_after, is_renewed })
}

// === impl Subject ===

impl Subject {
    /// What the certificate's common name says.
    pub fn user(&self) -> String {
        match self {
            Subject::Server(_) => "tollgate-controlplane".to_owned(),
            Subject::Operator(name) | Subject::Viewer(name) => name.clone(),
            Subject::Node(name) => format!("{}{name}", role::NODE_PREFIX),
        }
    }

    /// What the certificate's organization says.
    pub fn group(&self) -> Option<&'static str> {
        match self {
            Subject::Server(_) => None,
            Subject::Operator(_) => Some(role::MASTERS),
            Subject::Viewer(_) => Some(role::VIEWERS),
            Subject::Node(_) => Some(role::NODES),
        }
    }

    fn file_stem(&self) -> String {
        match self {
            Subject::Server(_) => "server".to_owned(),
            Subject::Operator(name) if name == OPERATOR => OPERATOR.to_owned(),
            Subject::Operator(name) => format!("operator-{name}"),
            Subject::Viewer(name) => format!("viewer-{name}"),
            Subject::Node(name) => format!("node-{name}"),
        }
    }
}

/// Names become file names as well: none may lead out of the directory.
fn check_names(request: &Request) -> Result<(), Error> {
    let Request { server_names, operators, viewers, nodes, .. } = request;
    for (flag, names) in [("operator", operators), ("viewer", viewers), ("node", nodes)] {
        for name in names {
            check_dns_1123_subdomain(name).map_err(|reason| Error::Name { flag, name: name.clone(), reason })?;
        }
    }
    for name in server_names {
        let is_address = name.parse::<std::net::IpAddr>().is_ok();
        let host = name.strip_prefix("*.").unwrap_or(name).to_ascii_lowercase();
        if !is_address && check_dns_1123_subdomain(&host).is_err() {
            let reason = "must be a DNS name or an IP address, without a port";
            return Err(Error::Name { flag: "server-name", name: name.clone(), reason });
        }
    }
    Ok(())
}

/// In the words of the crate that makes certificates, which knows whole seconds.
fn offset(at: Timestamp) -> OffsetDateTime {
    let at = SystemTime::from(at.round(jiff::Unit::Second).unwrap_or(at));
    OffsetDateTime::from(at)
}

#[cfg(test)]
mod tests;

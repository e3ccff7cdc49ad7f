//! What `certs` says: what was made, and how to use it.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{LOCAL_NAMES, Made, Subject};

/// What was made, and how to use each.
pub fn tell(made: &Made, dir: &Path, out: &mut impl Write) -> io::Result<()> {
    let dir = dir.display();
    let verb = if made.is_new_authority { "made" } else { "issued by" };
    writeln!(out, "{verb} {dir}/ca.crt ({}, valid until {})", made.authority, day(made.authority_not_after))?;
    let server = made.certificates.iter().find_map(|made| match &made.subject {
        Subject::Server(names) => names.iter().find(|name| !LOCAL_NAMES.contains(&name.as_str())),
        _ => None,
    });
    let server = server.map_or("SERVER", String::as_str);
    let url = if server.contains(':') { format!("https://[{server}]:7440") } else { format!("https://{server}:7440") };
    for certificate in &made.certificates {
        let verb = if certificate.is_renewed { "renewed" } else { "made" };
        let (user, path, key) =
            (certificate.subject.user(), certificate.certificate.display(), certificate.key.display());
        let whose = match (&certificate.subject, certificate.subject.group()) {
            (Subject::Server(names), _) => format!("for {}", names.join(", ")),
            (_, group) => format!("for user {user}, group {}", group.unwrap_or_default()),
        };
        writeln!(out, "\n{verb} {path} and {key}\n  {whose}; valid until {}", day(certificate.not_after))?;
        let client = format!("--certificate-authority {dir}/ca.crt --client-certificate {path} --client-key {key}");
        match &certificate.subject {
            Subject::Server(_) => writeln!(
                out,
                "  tollgate-controlplane serve --tls-cert-file {path} --tls-private-key-file {key} \
                 --client-ca-file {dir}/ca.crt --listen 0.0.0.0:7440 ..."
            )?,
            Subject::Operator(_) => writeln!(out, "  tollgate-controlplane get services -A --server {url} {client}")?,
            Subject::Viewer(_) => writeln!(out, "  tollgate-controlplane backup FILE --server {url} {client}")?,
            Subject::Node(name) => writeln!(
                out,
                "  copy both and ca.crt to the node, and there: tollgate-proxy --node-name {name} --control-plane {url} {client} ..."
            )?,
        }
    }
    if made.is_new_authority {
        writeln!(out, "\n{dir}/ca.key issues certificates, also of operators: keep it off the nodes and the server.")?;
    }
    Ok(())
}

fn day(at: Timestamp) -> impl fmt::Display {
    at.to_zoned(TimeZone::UTC).date()
}

//! The forms that Kubernetes asks of names, labels and addresses.

use std::net::IpAddr;

const LABEL_LENGTH: usize = 63;
const SUBDOMAIN_LENGTH: usize = 253;
const PORT_NAME_LENGTH: usize = 15;

type Check = Result<(), &'static str>;

/// Lower-case letters, digits and '-' inside: names of Namespaces, Services and ports. Service names may begin with a
/// digit since Kubernetes 1.36 (KEP-5311).
pub(crate) fn check_dns_1123_label(name: &str) -> Check {
    let is_valid = name.len() <= LABEL_LENGTH && is_label(name);
    is_valid.then_some(()).ok_or(
        "must be at most 63 lower-case letters, digits or '-', and start and end with a letter or digit (DNS-1123 label)",
    )
}

/// Labels joined by dots: names of most objects.
pub(crate) fn check_dns_1123_subdomain(name: &str) -> Check {
    let is_valid = name.len() <= SUBDOMAIN_LENGTH && name.split('.').all(is_label);
    is_valid.then_some(()).ok_or(
        "must be at most 253 lower-case letters, digits, '-' or '.', and start and end with a letter or digit \
         (DNS-1123 subdomain)",
    )
}

/// Two labels or more joined by dots, with or without one at the end: the name of a host, from the root on.
pub(crate) fn check_fqdn(name: &str) -> Check {
    let name = name.strip_suffix('.').unwrap_or(name);
    check_dns_1123_subdomain(name)?;
    let is_valid = name.contains('.') && name.split('.').all(|label| label.len() <= LABEL_LENGTH);
    is_valid.then_some(()).ok_or("must be a full domain name: at least two labels of at most 63 characters each")
}

/// The name of a container's port, as a Service's targetPort gives it.
pub(crate) fn check_port_name(name: &str) -> Check {
    let is_valid = name.len() <= PORT_NAME_LENGTH
        && is_label(name)
        && !name.contains("--")
        && name.contains(|c: char| c.is_ascii_lowercase());
    is_valid.then_some(()).ok_or("must be at most 15 lower-case letters, digits or single '-', with a letter in it")
}

/// The key of a label or annotation: `[prefix/]name`.
pub(crate) fn check_qualified_name(key: &str) -> Check {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let has_prefix = prefix.is_none_or(|prefix| check_dns_1123_subdomain(prefix).is_ok());
    (has_prefix && !name.is_empty() && check_label_value(name).is_ok()).then_some(()).ok_or(
        "must be a name of at most 63 letters, digits, '-', '_' or '.', after a DNS subdomain and '/' if there is a prefix",
    )
}

/// The value of a label.
pub(crate) fn check_label_value(value: &str) -> Check {
    let is_valid = value.len() <= LABEL_LENGTH
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && value.bytes().next().is_none_or(|b| b.is_ascii_alphanumeric())
        && value.bytes().last().is_none_or(|b| b.is_ascii_alphanumeric());
    is_valid
        .then_some(())
        .ok_or("must be at most 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit")
}

/// An IP address. IPv4 in the clothes of IPv6 (`::ffff:10.0.0.1`) is none: it is of one family here and of the other
/// on the wire.
pub(crate) fn parse_ip(text: &str) -> Result<IpAddr, &'static str> {
    match text.parse() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err("must not be an IPv4 address written as IPv6; write it as IPv4")
        }
        Ok(address) => Ok(address),
        Err(_) => Err("must be an IP address"),
    }
}

/// An address that traffic can be sent to from another machine. Kubernetes refuses the others as endpoints, because
/// they would reach into the node itself.
pub(crate) fn check_routable(address: IpAddr) -> Check {
    let address = address.to_canonical();
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Err("must not be the unspecified address")
    } else if address.is_loopback() {
        Err("must not be a loopback address")
    } else if is_link_local {
        Err("must not be a link-local address")
    } else if address.is_multicast() {
        Err("must not be a multicast address")
    } else {
        Ok(())
    }
}

fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row<'a> = (&'a str, fn(&str) -> Check, &'a [&'a str], &'a [&'a str]);

    #[test]
    fn names_follow_their_forms() {
        let long = "a".repeat(64);
        let rows: [Row<'_>; 6] = [
            ("label", check_dns_1123_label, &["a", "0a", "a-b", "1"], &["", "A", "-a", "a-", "a.b", "a_b", &long]),
            (
                "fqdn",
                check_fqdn,
                &["a.b", "a.b.", "0.example.org"],
                &["", ".", "a", "a.", "a.b..", "A.b", &format!("{long}.b")],
            ),
            ("subdomain", check_dns_1123_subdomain, &["a", "a.b", "0.1", &long], &["", ".", "a..b", "a.", "A.b"]),
            (
                "port",
                check_port_name,
                &["http", "a1", "1a"],
                &["", "1", "a--b", "sixteen-letters-", "sixteen-letterss"],
            ),
            ("key", check_qualified_name, &["app", "a.b/C_d", "A"], &["", "/a", "a/", "a/b/c", "A/b", "a b"]),
            ("value", check_label_value, &["", "A.b_c-d"], &["-a", "a-", "a b", &long]),
        ];
        for (name, check, good, bad) in rows {
            for good in good {
                assert_eq!(check(good), Ok(()), "{name} {good:?}");
            }
            for bad in bad {
                assert!(check(bad).is_err(), "{name} {bad:?}");
            }
        }
    }

    #[test]
    fn addresses_are_of_the_family_that_they_show() {
        for good in ["10.0.0.1", "::1", "fd00::1", "64:ff9b::10.0.0.1"] {
            assert_eq!(parse_ip(good), Ok(good.parse().unwrap()), "{good}");
        }
        for bad in ["", "10.0.0", "010.0.0.1", "10.0.0.1/32", "::ffff:10.0.0.1", "::ffff:a00:1", "fe80::1%eth0", " ::1"]
        {
            assert!(parse_ip(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn endpoints_must_be_routable() {
        for bad in
            ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "::", "::1", "fe80::1", "ff02::1", "::ffff:127.0.0.1"]
        {
            assert!(check_routable(bad.parse().unwrap()).is_err(), "{bad}");
        }
        for good in ["10.0.0.1", "192.168.1.1", "fd00::1", "2001:db8::1"] {
            assert_eq!(check_routable(good.parse().unwrap()), Ok(()), "{good}");
        }
    }
}

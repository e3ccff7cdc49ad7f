//! Names of Service ports as the kernel can hold them: short, and of harmless characters.

use tollgate_model::name::ServicePortName;

/// A Service port's name in at most `max` characters: what is longer ends with a hash instead, and a character that names
/// don't have, and that could end a comment, is replaced.
pub(super) fn label(name: &ServicePortName, max: usize) -> Box<str> {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-._/:".contains(it);
    let whole = name.to_string();
    let plain: String = whole.chars().map(|it| if is_plain(it) { it } else { '_' }).collect();
    if plain.len() <= max {
        return plain.into();
    }
    format!("{}~{:08x}", &plain[..max - 9], fingerprint(&whole)).into()
}

/// FNV-1a, folded to 32 bits: the same in every build, which the standard library's hashers do not promise.
fn fingerprint(text: &str) -> u32 {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let folded = (hash >> 32) ^ (hash & u64::from(u32::MAX));
    u32::try_from(folded).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tollgate_model::name::{NamespacedName, Protocol};

    use super::*;

    #[test]
    fn a_label_is_a_comment_that_nft_takes() {
        let name = |namespace: &str, name: &str, port: &str| {
            let service = NamespacedName::new(namespace, name);
            label(&ServicePortName { service, port: port.into(), protocol: Protocol::Tcp }, 128).to_string()
        };
        assert_eq!(name("shop", "web", "http"), "shop/web:http");
        assert_eq!(name("a", "\" }\nadd", "ä"), "a/____add:_");
        let (long, other) = (name("ns", &"a".repeat(253), "x"), name("ns", &"a".repeat(253), "y"));
        assert_eq!((long.len(), other.len()), (128, 128));
        assert_ne!(long, other);
        assert!(long.starts_with("ns/aaa"));
        assert_eq!(name("ns", &"a".repeat(123), "x").len(), 128);
        assert!(!name("ns", &"a".repeat(123), "x").contains('~'));
    }
}

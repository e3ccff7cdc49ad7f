//! The token file, in kube-apiserver's form: a line of CSV for each token, `token,user,uid,"group1,group2"`.

use csv::ReaderBuilder;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tollgate_api::pem::{self, File};

use super::identity::Identity;

/// What is kept of a token.
pub(crate) type Digest = [u8; 32];

/// Who has which token.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Vec<(Digest, Identity)>);

// === impl Tokens ===

impl Tokens {
    /// Reads a token file.
    ///
    /// # Errors
    /// When a line is not of that form, or two have the same token. The error has the line's number and never the token.
    pub(crate) fn parse(file: &File) -> Result<Self, pem::Error> {
        let mut tokens = Tokens::default();
        let text = str::from_utf8(&file.content).map_err(|error| file.unusable(error.to_string()))?;
        // A line at a time: a quote that is not closed must not take the lines after it along.
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let wrong = |reason: &str| file.unusable(format!("line {line}: {reason}"));
            let record = ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes()).into_records().next();
            let record = record.and_then(Result::ok).unwrap_or_default();
            let form = "it must be token,user,uid or token,user,uid,\"group1,group2\"";
            let (Some(token), Some(user), Some(_)) = (record.get(0), record.get(1), record.get(2)) else {
                return Err(wrong(form));
            };
            if record.len() > 4 {
                return Err(wrong(&format!("{form}: several groups need the quotes")));
            }
            if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong("the token is empty, or has other than letters, digits and punctuation"));
            }
            if user.is_empty() {
                return Err(wrong("the user is empty"));
            }
            let digest = digest(token);
            if tokens.find(&digest).is_some() {
                return Err(wrong("the token is that of an earlier line"));
            }
            let groups = record.get(3).unwrap_or_default().split(',').map(str::trim).filter(|group| !group.is_empty());
            tokens.0.push((digest, Identity { user: user.to_owned(), groups: groups.map(str::to_owned).collect() }));
        }
        Ok(tokens)
    }

    /// Whose token it is. Takes the same time for each token, known or not: every line is compared, whole.
    pub(crate) fn find(&self, digest: &Digest) -> Option<&Identity> {
        let mut found = u64::MAX;
        for (index, (known, _)) in (0..).zip(&self.0) {
            let is_it: Choice = known.ct_eq(digest);
            found.conditional_assign(&index, is_it);
        }
        self.0.get(usize::try_from(found).ok()?).map(|(_, identity)| identity)
    }
}

/// Tokens are compared, and kept, as their digests: these have one length, and can't be sent by who reads memory.
pub(crate) fn digest(token: &str) -> Digest {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Tokens, String> {
        let file = File { path: "/t.csv".into(), role: "token file", content: text.as_bytes().to_vec() };
        Tokens::parse(&file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_is_found_by_all_of_it() {
        let tokens =
            parse("abc,alice,1,\"system:masters, dev\"\nabd,system:node:a,2,system:nodes\nabe,bob,3\n").unwrap();
        let found = |token: &str| tokens.find(&digest(token)).map(ToString::to_string);
        assert_eq!(found("abc").unwrap(), "user \"alice\" (groups dev, system:masters)");
        assert_eq!(found("abd").unwrap(), "user \"system:node:a\" (group system:nodes)");
        assert_eq!(found("abe").unwrap(), "user \"bob\" (no group)");
        for token in ["", "ab", "abcd", "ABC", "abf"] {
            assert_eq!(found(token), None, "{token}");
        }
        assert!(Tokens::default().find(&digest("abc")).is_none());
    }

    #[test]
    fn wrong_lines_are_named_without_the_token() {
        for (text, expected) in [
            ("secret,alice", "line 1: it must be token,user,uid or"),
            ("a,b,1\n\nsecret,alice\n", "line 3: it must be"),
            (
                "secret,alice,1,g1,g2",
                "line 1: it must be token,user,uid or token,user,uid,\"group1,group2\": several groups",
            ),
            (",alice,1", "line 1: the token is empty"),
            ("sec ret,alice,1", "line 1: the token is empty, or has other"),
            ("secret,,1", "line 1: the user is empty"),
            ("secret,a,1\nsecret,b,2", "line 2: the token is that of an earlier line"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains("/t.csv") && error.contains(expected) && !error.contains("secret"),
                "{text}: {error}"
            );
        }
    }
}

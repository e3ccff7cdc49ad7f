//! How a resume token is written, so that a person can carry it from one command to the next.

use std::fmt;
use std::str::FromStr;

use crate::v1::ResumeToken;

/// Text that is not a resume token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidToken {
    /// The text as it was given.
    pub given: String,
}

impl std::error::Error for InvalidToken {}

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a resume token; one looks like STORE-ID:REVISION", self.given)
    }
}

/// `STORE-ID:REVISION`.
impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.store_id, self.revision)
    }
}

impl FromStr for ResumeToken {
    type Err = InvalidToken;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidToken { given: given.to_owned() };
        let (store_id, revision) = given.rsplit_once(':').ok_or_else(invalid)?;
        if store_id.is_empty() {
            return Err(invalid());
        }
        Ok(ResumeToken { store_id: store_id.to_owned(), revision: revision.parse().map_err(|_| invalid())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_written() {
        let token = ResumeToken { store_id: "5f0c".into(), revision: 42 };
        assert_eq!(token.to_string(), "5f0c:42");
        assert_eq!("5f0c:42".parse(), Ok(token));
        for bad in ["", "42", ":42", "5f0c:", "5f0c:x"] {
            assert_eq!(bad.parse::<ResumeToken>(), Err(InvalidToken { given: bad.into() }), "{bad}");
        }
    }
}

//! From the registry's errors to the status codes of the contract.

use std::fmt::Display;

use tonic::{Code, Status};

use crate::registry::Error;
use crate::store;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Invalid(_) => Code::InvalidArgument,
            Error::NotFound { .. } | Error::NamespaceNotFound { .. } => Code::NotFound,
            Error::Conflict { .. } | Error::OtherUid { .. } => Code::Aborted,
            Error::Refused { .. } => Code::FailedPrecondition,
            Error::Exhausted(_) => Code::ResourceExhausted,
            Error::Unreadable { .. } | Error::Diverged { .. } => Code::DataLoss,
            Error::Store(error) => match **error {
                store::Error::Damaged { .. } => Code::DataLoss,
                _ => Code::Unavailable,
            },
            Error::Thread { .. } | Error::Stopped => Code::Unavailable,
        };
        refusal(code, error)
    }
}

/// The longest message, in bytes. It travels among the headers, up to three bytes for each of its own, and clients take
/// 16 KiB of headers (hyper, gRPC's C core): beyond that they break the connection off instead of telling the message.
const LONGEST: usize = 4096;

/// A status with a message that may have words of the client's in it: of a length that reaches him, and on one line, so
/// that nobody writes lines into the log.
pub(super) fn refusal(code: Code, message: impl Display) -> Status {
    let mut told = String::new();
    for letter in message.to_string().chars() {
        if told.len() > LONGEST {
            told.push_str(" ...");
            break;
        }
        if letter.is_control() { told.extend(letter.escape_default()) } else { told.push(letter) }
    }
    Status::new(code, told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let told = |message: &str| refusal(Code::InvalidArgument, message).message().to_owned();
        assert_eq!(told("name: \"ü\" is\nwrong\u{1b}[1m"), "name: \"ü\" is\\nwrong\\u{1b}[1m");
        let long = told(&"ü".repeat(LONGEST));
        assert!(long.ends_with("ü ...") && long.len() < LONGEST + 10, "{}", long.len());
    }
}

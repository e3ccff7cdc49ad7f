//! From the registry's errors to the status codes of the contract.

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
        Status::new(code, error.to_string())
    }
}

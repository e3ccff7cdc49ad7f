//! Loops that write objects because of other objects, through the same door as every client.
//!
//! A controller follows the registry's feed, decides in a pure function, and writes with the revision that it has seen.
//! It keeps nothing of its own on disk: what it would do after a restart follows from the store alone.

mod endpoint_slice;

pub(crate) use endpoint_slice::run as run_endpoint_slices;

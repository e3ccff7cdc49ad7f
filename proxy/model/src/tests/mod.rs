//! The rules as statements over small objects, and the properties that hold for all of them.

mod build;
mod generate;
mod objects;
mod properties;
mod rules;
mod store;
mod warnings;

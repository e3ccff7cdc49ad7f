//! Generates the client and server from the contract. `protox` compiles it in Rust, so that no `protoc` is needed.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["tollgate/v1/controlplane.proto"], ["proto"])?;
    // For reflection: the contract as tools ask a server for it, comments included.
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("tollgate.v1.binpb"), files.encode_to_vec())?;
    tonic_prost_build::configure()
        // An order by kind, namespace and name: keys of ordered maps, and the order of lists on the wire.
        .type_attribute(".tollgate.v1.Key", "#[derive(PartialOrd, Ord)]")
        .compile_fds(files)?;
    Ok(())
}

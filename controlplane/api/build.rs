//! Generates the client and server from the contract. `protox` compiles it in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["tollgate/v1/controlplane.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // An order by kind, namespace and name: keys of ordered maps, and the order of lists on the wire.
        .type_attribute(".tollgate.v1.Key", "#[derive(PartialOrd, Ord)]")
        .compile_fds(files)?;
    Ok(())
}

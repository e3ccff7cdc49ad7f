//! Puts the object of the eBPF programs where the compiler can embed it.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../ebpf/object.rs"]
mod object;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for path in object::SOURCES.into_iter().chain([object::OBJECT, object::RECORD]) {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    if let Err(message) = embed(&root) {
        println!("cargo::error={message}");
    }
}

fn embed(root: &Path) -> Result<(), String> {
    let is_current =
        object::is_current(root).map_err(|error| format!("cannot read the eBPF programs' sources: {error}"))?;
    if !is_current {
        return Err(
            "the eBPF programs are not built, or not from these sources: run `cargo xtask ebpf`, which also gets the \
                    toolchain for them"
                .to_owned(),
        );
    }
    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or("OUT_DIR is not set")?;
    fs::copy(root.join(object::OBJECT), out.join("tollgate.o"))
        .map_err(|error| format!("cannot copy {}: {error}", object::OBJECT))?;
    Ok(())
}

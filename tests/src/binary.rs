//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::isolate::own_program;

/// The daemon of a node.
pub const PROXY: &str = "tollgate-proxy";
/// The bundled control plane.
pub const CONTROL_PLANE: &str = "tollgate-controlplane";

/// A program of this workspace, as built into the folder that this test or demo was built into.
///
/// `cargo test -p tollgate-lab` alone does not build it, and a test can't: cargo holds its lock while tests run.
pub fn locate(name: &str) -> Result<PathBuf> {
    // `cargo xtask mutants` has one of its own.
    if let (PROXY, Some(path)) = (name, env::var_os("TOLLGATE_LAB_PROXY")) {
        return Ok(path.into());
    }
    let remedy = "build it first: cargo build -p tollgate-proxy -p tollgate-controlplane";
    let this = own_program()?;
    // target/debug/xtask, or target/debug/deps/behaviour-0123456789abcdef
    let folders = this.ancestors().skip(1).take(2);
    let Some(found) = folders.map(|folder| folder.join(name)).find(|path| path.is_file()) else {
        bail!("there is no {name} beside {} ({remedy})", this.display());
    };
    if let Some(newer) = newer_source(&found)? {
        ensure!(
            env::var_os("TOLLGATE_LAB_ANY_BUILD").is_some(),
            "{} is older than {} ({remedy}, or set TOLLGATE_LAB_ANY_BUILD=1)",
            found.display(),
            newer.display()
        );
    }
    Ok(found)
}

/// A source file that is newer than `program`, which cargo lists beside it in `program.d`.
fn newer_source(program: &Path) -> Result<Option<PathBuf>> {
    let built = program.metadata()?.modified()?;
    let Ok(list) = std::fs::read_to_string(program.with_extension("d")) else {
        return Ok(None);
    };
    // `program: source source ...`; a space within a name is escaped, and such a source is passed over.
    let sources = list.split_once(": ").map_or("", |(_, sources)| sources).split_whitespace();
    let newer = |path: &PathBuf| path.metadata().and_then(|data| data.modified()).is_ok_and(|time| time > built);
    Ok(sources.map(PathBuf::from).find(newer))
}

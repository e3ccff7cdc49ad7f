//! The scratch copy that mutants are made in.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::list::Mutant;
use super::succeeds;
use crate::build::cargo;
use crate::ebpf;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A copy of the tree, as it is in the working directory, with a target folder of its own.
pub(super) struct Tree {
    root: PathBuf,
}

/// A file of the copy that is changed; dropped, it is as it was.
pub(super) struct Changed {
    path: PathBuf,
    text: String,
}

impl Tree {
    /// Brings the copy up to date, and leaves files alone that are: what was built of them is still good.
    pub(super) fn copy() -> Result<Self> {
        let root = Path::new(ROOT).join("target/mutants/tree");
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(ROOT)
            .output()
            .context("cannot run git")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let mut files = BTreeSet::new();
        for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
            // Listed, and not there: removed, and not committed yet.
            let Ok(bytes) = fs::read(Path::new(ROOT).join(name)) else { continue };
            let to = root.join(name);
            files.insert(to.clone());
            if fs::read(&to).is_ok_and(|old| old == bytes) {
                continue;
            }
            fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        remove_others(&root, &files)?;
        ebpf::copy_to(&root)?;
        Ok(Self { root })
    }

    /// Builds the proxy; whether it compiles.
    pub(super) fn build(&self) -> Result<bool> {
        let mut command = cargo(&["build", "--quiet", "--package", "tollgate-proxy"]);
        succeeds(
            command.current_dir(&self.root).env("CARGO_TARGET_DIR", self.target()).env("CARGO_PROFILE_DEV_DEBUG", "0"),
        )
    }

    /// The proxy that was built.
    pub(super) fn proxy(&self) -> PathBuf {
        self.target().join("debug/tollgate-proxy")
    }

    fn target(&self) -> PathBuf {
        self.root.with_file_name("target")
    }

    /// Makes a mutant's change.
    pub(super) fn change(&self, mutant: &Mutant) -> Result<Changed> {
        let path = self.root.join(mutant.file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(&path, mutant.apply(&text)?).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Changed { path, text })
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.text) {
            eprintln!("{} stays as the mutant has left it: {error}", self.path.display());
        }
    }
}

/// Removes files that are no more: one of another name may have taken the place of a module's. What was built stays.
fn remove_others(folder: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    let what = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(what)? {
        let path = entry.with_context(what)?.path();
        if path.is_dir() && !path.ends_with("target") {
            remove_others(&path, files)?;
        } else if path.is_file() && !files.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Reads a file of the tree itself.
#[cfg(test)]
pub(super) fn read(name: &str) -> Result<String> {
    fs::read_to_string(Path::new(ROOT).join(name)).with_context(|| format!("cannot read {name}"))
}

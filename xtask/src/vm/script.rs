//! The shell script that becomes the command in the guest.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, ensure};

/// A script that sets the environment, goes to the current folder, and becomes the command.
pub(super) fn command(command: &[OsString], environment: &[String]) -> Result<Vec<u8>> {
    let mut script = b"export HOME=/root TERM=dumb\n".to_vec();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = [path.as_bytes(), b":/usr/sbin:/usr/bin:/sbin:/bin"].concat();
    export(&mut script, "PATH", OsStr::from_bytes(&path));
    for variable in environment {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (variable.as_str(), env::var_os(variable)),
        };
        ensure!(is_name(name), "--env {variable}: `{name}` is not the name of a variable");
        let value = value.with_context(|| format!("--env {variable}: no such variable is set here"))?;
        export(&mut script, name, &value);
    }
    let folder = env::current_dir().context("there is no current folder")?;
    script.extend(b"cd ");
    script.extend(quoted(folder.as_os_str()));
    script.extend(b" || exit 126\nexec");
    for word in command {
        script.push(b' ');
        script.extend(quoted(word));
    }
    script.push(b'\n');
    Ok(script)
}

fn export(script: &mut Vec<u8>, name: &str, value: &OsStr) {
    script.extend(format!("export {name}=").as_bytes());
    script.extend(quoted(value));
    script.push(b'\n');
}

/// A word that a shell reads as it is.
pub(super) fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// Whether a shell can export a variable of that name.
fn is_name(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

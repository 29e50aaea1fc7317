//! Files of the agent's own.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use veer_agent_api::file;

/// What the agent's temporary files end in. The agent writes each file from one place
/// at a time.
pub(crate) const WRITER: &str = "tmp";

/// Replaces a file as [`file::replace`] does, in a folder that is made where it is
/// missing.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let write = || file::replace(path, WRITER, |file| file.write_all(content));
    match (write(), path.parent()) {
        // Somebody emptied the folder above.
        (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder)?;
            write()
        }
        (written, _) => written,
    }
}

/// Removes a file; fine when there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

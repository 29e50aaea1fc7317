//! Files that survive a crash at any instruction.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Replaces a file by what `write` writes, so that a reader, also after a crash, sees
/// the old content or the new one: a temporary file beside it, fsync, rename, fsync of
/// the folder. Of a failed attempt nothing stays.
///
/// `writer` ends the temporary file's name, which begins with a dot: writers of one
/// file at the same time need different ones, and one that dies leaves a file that
/// only a later one of the same name overwrites.
///
/// # Errors
///
/// Those of `write`; the file cannot be written, or has no folder.
pub fn replace(
    path: &Path,
    writer: &str,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let temporary = folder.join(format!(".{}.{writer}", name.to_string_lossy()));
    let mut file = File::create(&temporary)?;
    write(&mut file)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
        })?;
    File::open(folder)?.sync_all()
}

/// Suffix of the agent's temporary files. The agent writes each file from one place
/// at a time.
pub const AGENT: &str = "tmp";

/// Replaces a file of the agent's as [`replace`] does, in a folder that is made where
/// it is missing.
///
/// # Errors
///
/// The file or its folder cannot be written.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let write = || replace(path, AGENT, |file| file.write_all(content));
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
///
/// # Errors
///
/// It is there and cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

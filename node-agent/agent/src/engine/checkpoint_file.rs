//! The checkpoint on disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use veer_agent_api::file;

use veer_agent_core::checkpoint::Checkpoint;

/// [`Checkpoint`] with its file.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    path: PathBuf,
    /// What the file holds.
    content: Checkpoint,
    /// There was a file.
    known: bool,
}

impl CheckpointFile {
    /// Reads it; an absent or unreadable file is an empty one.
    pub(crate) fn open(state: &Path) -> Self {
        let path = state.join("held.json");
        let (content, known) = match fs::read(&path).map(|b| serde_json::from_slice(&b)) {
            Ok(Ok(content)) => (content, true),
            Ok(Err(error)) => {
                tracing::error!(path = %path.display(), %error, "unreadable; starting without it");
                (Checkpoint::default(), false)
            }
            Err(_) => (Checkpoint::default(), false),
        };
        Self {
            path,
            content,
            known,
        }
    }

    /// What the file holds.
    pub(crate) fn get(&self) -> &Checkpoint {
        &self.content
    }

    /// Whether anything is known of an earlier agent.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// Changes it, on disk first; no write when nothing changed.
    pub(crate) fn set(&mut self, content: Checkpoint) -> io::Result<()> {
        if content != self.content || !self.path.exists() {
            let bytes = serde_json::to_vec(&content)?;
            file::write(&self.path, &bytes)?;
            self.content = content;
            self.known = true;
        }
        Ok(())
    }
}

//! A lock that outlives a panic of who held it: what it guards is compared with
//! the kernel in the next round anyway.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A value that one thread at a time changes.
#[derive(Debug, Default)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Guards a value.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the others.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

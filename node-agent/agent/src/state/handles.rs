//! Handles of what one part of the agent writes and others read.

use std::{
    ops::Deref,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use veer_agent_kernel::lock::Lock;

/// The one handle that writes a value. Like [`Lock`] it outlives a panic of who held
/// it.
#[derive(Debug)]
pub(crate) struct Writer<T>(Arc<RwLock<T>>);

/// Reads what a [`Writer`] writes.
#[derive(Debug)]
pub(crate) struct Reader<T>(Arc<RwLock<T>>);

/// Reads what a [`Lock`] guards.
#[derive(Debug)]
pub(crate) struct View<T>(Arc<Lock<T>>);

impl<T> Writer<T> {
    /// The only writer of this value.
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(value)))
    }

    /// A handle that reads it.
    pub(crate) fn reader(&self) -> Reader<T> {
        Reader(Arc::clone(&self.0))
    }

    /// The value, to read.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value, to change.
    pub(crate) fn write(&mut self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Reader<T> {
    /// The value. The writer waits meanwhile.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> View<T> {
    /// Of what this lock guards.
    pub(crate) fn of(lock: &Arc<Lock<T>>) -> Self {
        Self(Arc::clone(lock))
    }

    /// The value. All others wait meanwhile.
    pub(crate) fn read(&self) -> impl Deref<Target = T> + '_ {
        self.0.lock()
    }
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

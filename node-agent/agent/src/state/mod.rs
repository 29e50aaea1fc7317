//! What the agent's parts hand to each other: plain data, and the handles by which one
//! of them writes what others read.
//!
//! Locks are taken in this order: datapath, index, plan, store. None of them is held over
//! netlink, the disk or the network, but for two: the datapath's over the maps and pins
//! that it guards, and the index for reading by the engine's thread, which alone writes
//! index and plan and so may hold it all through a round, whatever it takes then. The
//! content of the disk is decided under the store's lock and written without it, in order
//! by the records' locks, which are taken before the store's and never under one of
//! these. All others (ADDs under way, repairs, what the publisher has written) are held
//! for a statement, and none is taken under them.

pub(crate) mod handles;
pub(crate) mod input;
pub(crate) mod maps;
pub(crate) mod options;
pub(crate) mod plan;

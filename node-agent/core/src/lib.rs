//! What the agent knows and what it wants: plain data and pure functions. No maps, no
//! netlink, no API client, no files, no clock: all of that comes in as arguments, and
//! what is to be done goes out as values.
//!
//! `index` (what the API server said) and `endpoint` (this node's pods) lead by way of
//! `peers` and `switch` to `desired`; `diff` says what of it is not there yet. `services`
//! keeps the rows of Services, whose numbers have to outlive a change.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod desired;
pub mod diff;
pub mod endpoint;
pub mod facts;
pub mod family;
pub mod index;
pub mod link;
pub mod mtu;
pub mod peers;
pub mod prefix;
pub mod repair;
pub mod route;
pub mod services;
pub mod switch;
pub mod tables;

//! Packet logic of veer's programs: what a header says, which flow a packet
//! belongs to, how long a flow entry lasts, how a header changes on the way.
//!
//! Nothing here depends on BPF: packets are read through [`bytes::Bytes`], which
//! the programs implement for `__sk_buff` and XDP frames and this crate for
//! slices, so that the very same code is tested on the host.
//!
//! Invariants: no read beyond what the frame *and* the headers' own lengths
//! allow; a packet that is shorter than it says is malformed.

#![forbid(unsafe_code)]
#![no_std]
#![allow(
    clippy::inline_always,
    reason = "a call across BPF functions costs registers and verifier state"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "offsets and lengths of headers; a checked conversion has an error path that the \
              verifier must walk and no packet reaches"
)]

pub mod arp;
pub mod bytes;
pub mod checksum;
pub mod conntrack;
pub mod ethernet;
pub mod flow;
pub mod fragments;
pub mod icmp;
pub mod ip;
pub mod l4;
pub mod nd;
pub mod size;
pub mod vxlan;

#[cfg(test)]
mod testing;

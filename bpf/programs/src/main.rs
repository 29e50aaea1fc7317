//! veer's BPF programs, one per attach point, in one object.
//!
//! Every program has the same shape: an inner function in [`hooks`] looks at the
//! packet and returns `Result<Verdict, DropReason>`; [`exit`] alone turns that into
//! the code for the kernel, the counter and the decision record, and [`event`] keeps
//! samples of drops. Shared code is below the hooks: [`path`] sends a packet on its way, [`state`] is the maps, [`ctx`] is the packet as the kernel hands
//! it over. A module uses its own folder and those below: hooks → path → state → ctx,
//! and hooks → exit → event → state. `.ci/layers` checks that.
//!
//! The host build exists for the linter alone: nothing here runs there, and `main`
//! only satisfies the compiler.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(
    clippy::inline_always,
    reason = "a call across BPF functions costs registers and verifier state"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "offsets and lengths of headers, and sizes of structures"
)]
#![allow(
    clippy::needless_pass_by_value,
    clippy::unnecessary_wraps,
    reason = "the macros of aya-ebpf hand the context over; all inner functions have one shape"
)]

mod ctx;
mod event;
mod exit;
mod hooks;
mod path;
mod state;

/// The helpers for redirects and tunnel keys are open to GPL-compatible
/// programs only; the kernel knows this string as one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs in which this could be reached.
    loop {}
}

//! The first process of a sandbox, and of a node: waits for ever, reaps the
//! orphans it inherits, ends on SIGTERM or SIGINT.
//!
//! One file without dependencies, built with rustc alone into a static
//! program. Signals are blocked and fetched with sigwait(3), so that none is
//! lost between two calls and the kernel's rule that signals without a
//! handler do not reach process 1 does not apply (blocked ones are queued).

use std::ffi::{c_int, c_void};

/// sigset_t of glibc on Linux: 1024 bits.
#[repr(C)]
struct SigSet([u64; 16]);

const SIG_BLOCK: c_int = 0;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const WNOHANG: c_int = 1;

unsafe extern "C" {
    fn sigaddset(set: *mut SigSet, signal: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
    fn sigwait(set: *const SigSet, signal: *mut c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_void, options: c_int) -> c_int;
}

fn main() {
    let mut set = SigSet([0; 16]);
    // SAFETY: `set` is a whole, zeroed (= empty) sigset_t that outlives the
    // calls; a null old mask is allowed.
    unsafe {
        for signal in [SIGINT, SIGTERM, SIGCHLD] {
            sigaddset(&raw mut set, signal);
        }
        sigprocmask(SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
    loop {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right types.
        unsafe { sigwait(&raw const set, &raw mut signal) };
        if signal == SIGINT || signal == SIGTERM {
            return;
        }
        // SAFETY: a null status is allowed; children are only reaped.
        while unsafe { waitpid(-1, std::ptr::null_mut(), WNOHANG) } > 0 {}
    }
}

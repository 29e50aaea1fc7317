//! The BPF object of `bpf/programs`, built by this crate's build script and
//! nowhere else.
//!
//! With `VEER_BPF_SKIP=1` in the build's environment [`OBJECT`] is empty, so
//! that a linter's run needs no BPF toolchain.

#![forbid(unsafe_code)]

/// ELF headers are read in place; they want the alignment of their integers.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/veer.bpf.o")));

/// The ELF object with all seven programs, their maps and BTF.
pub static OBJECT: &[u8] = &ALIGNED.0;

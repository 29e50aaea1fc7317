//! The clock that programs and maps use.

/// Nanoseconds of `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` counts them.
pub(crate) fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(std::time::Duration::from)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

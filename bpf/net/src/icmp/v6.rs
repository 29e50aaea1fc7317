//! Types of `ICMPv6` (RFC 4443).

/// Echo and its reply.
pub(crate) const fn has_identifier(icmp_type: u8) -> bool {
    matches!(icmp_type, 128 | 129)
}

/// Errors have the types below 128; what each carries begins at the same place.
pub(crate) const fn is_error(icmp_type: u8) -> bool {
    icmp_type < 128
}

/// Unreachable, too big, time exceeded, parameter problem.
pub(crate) const fn is_undeliverable(icmp_type: u8) -> bool {
    matches!(icmp_type, 1..=4)
}

//! Types of `ICMPv6` (RFC 4443).

use super::Types;
use veer_bpf_common::tables::Tuple;

/// `ICMPv6`.
#[derive(Debug)]
pub enum IcmpV6 {}

impl Types for IcmpV6 {
    const PROTOCOL: u8 = crate::ip::ICMP_V6;

    /// Echo and its reply.
    #[inline(always)]
    fn asker(icmp_type: u8) -> u8 {
        match icmp_type {
            128 => Tuple::SOURCE_ASKS,
            129 => Tuple::DESTINATION_ASKS,
            _ => 0,
        }
    }

    /// Errors have the types below 128; what each carries begins at the same place.
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        icmp_type < 128
    }

    /// Unreachable, too big, time exceeded, parameter problem.
    #[inline(always)]
    fn is_undeliverable(icmp_type: u8) -> bool {
        matches!(icmp_type, 1..=4)
    }
}

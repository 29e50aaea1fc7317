//! Types of ICMP for IPv4 (RFC 792).

use super::Types;
use veer_bpf_common::tables::Tuple;

/// ICMP for IPv4.
#[derive(Debug)]
pub enum IcmpV4 {}

impl Types for IcmpV4 {
    const PROTOCOL: u8 = crate::ip::ICMP;

    /// Echo, timestamp, information and address mask, with their replies (RFC 792,
    /// RFC 950).
    #[inline(always)]
    fn asker(icmp_type: u8) -> u8 {
        match icmp_type {
            8 | 13 | 15 | 17 => Tuple::SOURCE_ASKS,
            0 | 14 | 16 | 18 => Tuple::DESTINATION_ASKS,
            _ => 0,
        }
    }

    /// Unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 3..=5 | 11 | 12)
    }

    /// Unreachable (too big for a link included), time exceeded, parameter problem.
    #[inline(always)]
    fn is_undeliverable(icmp_type: u8) -> bool {
        matches!(icmp_type, 3 | 11 | 12)
    }
}

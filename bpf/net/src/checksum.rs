//! The Internet checksum of an IPv4 header, updated without summing it again.

/// TTL and header checksum after one hop (RFC 1624). The
/// TTL is the high byte of its 16-bit word, so the sum falls by 0x100 and its
/// complement grows by as much, with the end-around carry.
///
/// The caller has checked that `ttl` is not 0.
#[inline(always)]
pub const fn decrement_ttl(ttl: u8, checksum: [u8; 2]) -> (u8, [u8; 2]) {
    let sum = u16::from_be_bytes(checksum) as u32 + 0x0100;
    let folded = (sum + (sum >= 0xffff) as u32) as u16;
    (ttl.wrapping_sub(1), folded.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use crate::{ethernet::HEADER_LENGTH, testing};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_changed_header_sums_to_zero_like_a_fresh_one(
            source: [u8; 4], destination: [u8; 4], identification: u16, ttl in 2u8..,
        ) {
            let mut packet = testing::udp();
            packet.source = source;
            packet.destination = destination;
            packet.identification = identification;
            packet.ttl = ttl;
            let mut frame = packet.frame();
            let checksum = [frame[HEADER_LENGTH + 10], frame[HEADER_LENGTH + 11]];
            let (new_ttl, checksum) = super::decrement_ttl(ttl, checksum);
            frame[HEADER_LENGTH + 8] = new_ttl;
            frame[HEADER_LENGTH + 10..HEADER_LENGTH + 12].copy_from_slice(&checksum);
            prop_assert_eq!(new_ttl, ttl - 1);
            prop_assert_eq!(testing::sum(&frame[HEADER_LENGTH..HEADER_LENGTH + 20]), 0xffff);
        }
    }
}

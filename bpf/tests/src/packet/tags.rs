//! VLAN tags as they are on the wire, outermost first: type and what follows it.

/// A priority tag, which is of no VLAN.
pub const PRIORITY: [&[[u8; 4]]; 3] = [
    &[[0x81, 0, 0, 0]],
    &[[0x81, 0, 0xe0, 0]],
    &[[0x88, 0xa8, 0, 0]],
];
/// A priority tag behind a priority tag.
pub const NESTED: [&[[u8; 4]]; 3] = [
    &[[0x81, 0, 0, 0], [0x81, 0, 0, 0]],
    &[[0x88, 0xa8, 0, 0], [0x81, 0, 0x20, 0]],
    &[[0x81, 0, 0, 0], [0x81, 0, 0, 0], [0x81, 0, 0, 0]],
];
/// Tags of a VLAN that no device of the tests is of.
pub const VLAN: [&[[u8; 4]]; 2] = [&[[0x81, 0, 0, 5]], &[[0x81, 0, 0, 0], [0x81, 0, 0, 5]]];
/// No tag.
pub const UNTAGGED: [&[[u8; 4]]; 1] = [&[]];

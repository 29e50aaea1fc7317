//! Old paths of addresses and of [`crate::tables`]' keys.

pub use crate::{
    address::{FAMILY_V4, FAMILY_V6, IP_KEY_TAG_BITS, IpKey, PrefixKey, to_ip},
    tables::{FlowKey, FlowSlot, FragmentKey},
};

//! Blocks of pod addresses, as `address/length`.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, ensure};

/// Base address and length in bits of a block.
fn parts(cidr: &str) -> Result<(IpAddr, u32)> {
    let (base, length) = cidr
        .split_once('/')
        .with_context(|| format!("{cidr} is no block"))?;
    let wrong = |what: &str| anyhow!("{cidr} is no block: {what} is none");
    Ok((
        base.parse().map_err(|_| wrong(base))?,
        length.parse().map_err(|_| wrong(length))?,
    ))
}

/// The address that a node answers probes at, which is its pods' gateway: the first of
/// its block.
pub fn health(cidr: &str) -> Result<IpAddr> {
    match parts(cidr)?.0 {
        IpAddr::V4(base) => Ok(IpAddr::V4((base.to_bits() + 1).into())),
        IpAddr::V6(base) => Ok(IpAddr::V6((base.to_bits() + 1).into())),
    }
}

/// It is an error when an address is outside a block.
pub fn within(cidr: &str, address: IpAddr) -> Result<()> {
    let (base, length) = parts(cidr)?;
    let differ = match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => (base.to_bits() ^ address.to_bits())
            .checked_shr(32 - length)
            .unwrap_or(0)
            .into(),
        (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits() ^ address.to_bits())
            .checked_shr(128 - length)
            .unwrap_or(0),
        _ => 1,
    };
    ensure!(differ == 0, "{address} is outside {cidr}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_answered_at_the_first_address_of_the_block() {
        for (cidr, first) in [
            ("10.244.3.0/24", "10.244.3.1"),
            ("fd00:10:244:3::/64", "fd00:10:244:3::1"),
        ] {
            assert_eq!(health(cidr).expect("a block").to_string(), first);
        }
        assert!(health("nonsense").is_err());
    }

    #[test]
    fn an_address_is_within_a_block_of_its_own_family_or_not_at_all() {
        for (cidr, address, is_within) in [
            ("10.244.3.0/24", "10.244.3.255", true),
            ("10.244.3.0/24", "10.244.4.0", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("fd00:10:244:3::/64", "fd00:10:244:3:ffff::1", true),
            ("fd00:10:244:3::/64", "fd00:10:244:4::1", false),
            ("::/0", "10.244.3.1", false),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(within(cidr, address).is_ok(), is_within, "{address} {cidr}");
        }
    }
}

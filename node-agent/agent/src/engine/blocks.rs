//! Blocks that are assigned, against those in use.

use ipnet::IpNet;

/// Why new pods have to wait for those that hold addresses of a former block; empty: they
/// need not. They do not wait for a block of a family that is not assigned any more.
pub(super) fn waits_for_pods(assigned: &[IpNet], in_use: &[IpNet]) -> String {
    let held = in_use.iter().find_map(|held| {
        let same_family = |block: &&IpNet| block.addr().is_ipv4() == held.addr().is_ipv4();
        let block = assigned.iter().find(same_family)?;
        (block != held).then_some((block, held))
    });
    held.map_or_else(String::new, |(block, held)| {
        format!(
            "the node is assigned {block} but its pods hold {held}: drain the node to take the \
             new block over"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_pods_wait_for_the_former_block_of_a_family_and_not_for_a_family_that_went() {
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let (v4, v6) = ("10.1.0.0/24", "fd00:1::/64");
        for (assigned, in_use, held) in [
            (vec![v4], vec![v4], None),
            (vec![v4, v6], vec![v4, v6], None),
            (vec![v4], vec![v4, v6], None),
            (vec![v6], vec![v6, v4], None),
            (vec!["10.2.0.0/24"], vec![v4], Some(v4)),
            (vec![v4, "fd00:2::/64"], vec![v4, v6], Some(v6)),
            (vec![v4, "10.2.0.0/24"], vec![v4], None),
        ] {
            let text = waits_for_pods(&nets(&assigned), &nets(&in_use));
            assert_eq!(text.is_empty(), held.is_none(), "{text}");
            assert!(held.is_none_or(|held| text.contains(held)), "{text}");
        }
    }
}

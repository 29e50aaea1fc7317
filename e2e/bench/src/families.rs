//! The same path in both families: round trips and streams in IPv4 and IPv6, one
//! after the other.
//!
//! Round trips by qperf, since sockperf before 3.8 knows IPv4 alone. It gives the
//! mean of one way.

use std::net::IpAddr;

use anyhow::{Context, Result};
use veer_e2e_cluster::Family;
use veer_e2e_tests::site::Site;

use crate::{
    figures::Figures,
    measure::{stream, subject},
};

/// Where qperf's servers listen for orders.
pub(crate) const CONTROL_PORT: &str = "19765";

/// What is measured in both families.
pub(crate) const SUBJECTS: [&str; 4] = [
    subject::NODE,
    subject::SAME,
    subject::TUNNEL,
    subject::NATIVE,
];

/// Mean round trip in microseconds, in IPv4 and IPv6.
pub(crate) const MEAN: [&str; 2] = ["IPv4, us", "IPv6, us"];
/// TCP stream in gigabits per second, in IPv4 and IPv6.
pub(crate) const STREAM: [&str; 2] = ["IPv4, Gb/s", "IPv6, Gb/s"];

/// Measures one path: `to` gives the server's address of a family.
pub(crate) fn measure(
    from: &Site,
    to: impl Fn(Family) -> Result<IpAddr>,
    seconds: u32,
    name: &str,
    figures: &mut Figures,
) -> Result<()> {
    for (index, family) in [Family::V4, Family::V6].into_iter().enumerate() {
        let to = to(family)?.to_string();
        let time = seconds.to_string();
        let out = from.exec(&[
            "taskset",
            "-c",
            "0",
            "timeout",
            "60",
            "qperf",
            &to,
            "-lp",
            CONTROL_PORT,
            "-t",
            &time,
            "-m",
            "14",
            "-e",
            "6",
            "-uu",
            "tcp_lat",
        ])?;
        let one_way = nanoseconds(&out.stdout).context("qperf printed no latency")?;
        figures.add(name, MEAN[index], 2.0 * one_way / 1e3);
        figures.add(name, STREAM[index], stream(from, &to, seconds)?);
    }
    Ok(())
}

/// The latency that qperf prints with `-uu`, in nanoseconds.
fn nanoseconds(text: &str) -> Option<f64> {
    let line = text.lines().find(|l| l.trim().starts_with("latency"))?;
    let (value, unit) = line.split_once('=')?.1.trim().split_once(' ')?;
    (unit.trim() == "ns").then(|| value.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::nanoseconds;

    #[test]
    fn latency_is_read_as_qperf_prints_it() {
        let text = "tcp_lat:\n    latency  =  12236.5 ns\n";
        assert_eq!(nanoseconds(text), Some(12236.5));
        assert_eq!(nanoseconds("    latency  =  12 us\n"), None);
        assert_eq!(nanoseconds(""), None);
    }
}

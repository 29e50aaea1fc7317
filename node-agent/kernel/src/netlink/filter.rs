//! Filters of the clsact qdisc, of which kernels before 6.6 know no links
//! (`include/uapi/linux/pkt_cls.h`).

use std::io;

use nix::libc::{EINVAL, ENODEV, ENOENT};
use veer_bpf_common::device::IfIndex;

use super::message::{Attrs, Message, Received, Socket, u32_at};

const RTM_GETTFILTER: u16 = 46;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
/// Bytes of `struct tcmsg`.
const HEADER: usize = 20;
/// `ETH_P_ALL`.
const ETH_P_ALL: u16 = 3;

/// Where a filter is: `TC_H_CLSACT` with `TC_H_MIN_INGRESS` or
/// `TC_H_MIN_EGRESS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Parent {
    /// What arrives.
    Ingress = 0xffff_fff2,
    /// What leaves.
    Egress = 0xffff_fff3,
}

/// Id of the BPF program of a filter for all protocols; `None`: there is no such
/// filter, qdisc or device.
pub fn program(
    socket: &mut Socket,
    device: IfIndex,
    parent: Parent,
    priority: u16,
    handle: u32,
) -> io::Result<Option<u32>> {
    let mut fixed = [0; HEADER];
    let info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    fixed[4..8].copy_from_slice(&device.get().to_ne_bytes());
    fixed[8..12].copy_from_slice(&handle.to_ne_bytes());
    fixed[12..16].copy_from_slice(&(parent as u32).to_ne_bytes());
    fixed[16..20].copy_from_slice(&info.to_ne_bytes());
    match socket.get(Message::new(RTM_GETTFILTER, 0, &fixed)) {
        Ok(answer) => Ok(program_of(&answer)),
        Err(e) if matches!(e.raw_os_error(), Some(ENOENT | EINVAL | ENODEV)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn program_of(answer: &Received) -> Option<u32> {
    let options = Attrs(answer.attrs(HEADER).find(TCA_OPTIONS)?);
    u32_at(options.find(TCA_BPF_ID)?, 0)
}

#[cfg(test)]
mod tests {
    use super::super::{link::LOOPBACK, message::messages};
    use super::*;

    /// The kernel's answer for a filter with these options.
    fn answer(options: &[(u16, u32)]) -> Message {
        let mut message = Message::new(44, 0, &[0; HEADER]);
        message.string(1, "bpf").nest(TCA_OPTIONS, |m| {
            for (kind, value) in options {
                m.u32(*kind, *value);
            }
        });
        message
    }

    #[test]
    fn the_program_of_a_filter_is_found_among_its_options() {
        let all = messages(&answer(&[(8, 1), (TCA_BPF_ID, 4711)]).finish(1, 0));
        assert_eq!(program_of(&all[0]), Some(4711));
        let none = messages(&answer(&[(8, 1)]).finish(1, 0));
        assert_eq!(program_of(&none[0]), None);
    }

    #[test]
    fn a_cut_answer_names_no_program() {
        let whole = messages(&answer(&[(TCA_BPF_ID, 4711)]).finish(1, 0)).remove(0);
        for length in 0..whole.body.len() {
            let cut = Received {
                kind: whole.kind,
                body: whole.body[..length].to_vec(),
            };
            assert_eq!(program_of(&cut), None, "{length} octets");
        }
    }

    #[test]
    fn a_device_without_the_qdisc_has_no_filter() {
        let mut socket = Socket::route().expect("a socket");
        let found = program(&mut socket, LOOPBACK, Parent::Ingress, 1, 1).expect("asked");
        assert_eq!(found, None);
        let gone = IfIndex::from_kernel(99_999);
        let nowhere = program(&mut socket, gone, Parent::Egress, 1, 1).expect("asked");
        assert_eq!(nowhere, None);
    }
}

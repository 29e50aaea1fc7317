//! The table as netlink: one batch that replaces it, and a look at what is there.

use std::{ffi::CStr, io, net::Ipv4Addr};

use netlink_bindings::nftables::{Chained, Nfgenmsg, Request};
use netlink_socket2::{NetlinkSocket, ReplyError};
use thiserror::Error as ThisError;

use super::{
    expression::{NODE_SET, NODE_SET_ID},
    rules::Chain,
};

const TABLE: &CStr = c"veer";
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// nft's number for the type `ipv4_addr`, by which its listing shows addresses.
const TYPE_IPV4: u32 = 7;
/// Elements in one message: well within the 64 KiB of a netlink attribute.
const ELEMENTS_AT_ONCE: usize = 1000;

/// nf_tables said no.
#[derive(Debug, ThisError)]
pub(crate) enum Error {
    /// A request was refused.
    #[error(
        "nf_tables refused to {what} table inet veer; is the module nf_tables there (modprobe nf_tables) and CAP_NET_ADMIN granted?"
    )]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The kernel's answer.
        source: ReplyError,
    },
    /// The socket failed.
    #[error("no netlink socket to nf_tables")]
    Socket(#[from] io::Error),
}

impl Error {
    fn refused(what: &'static str) -> impl Fn(ReplyError) -> Self {
        move |source| Self::Refused { what, source }
    }
}

/// What tells one written table from another without reading every expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Digest in the table's user data.
    pub(super) digest: u64,
    /// How many rules it has: some may have been removed since.
    pub(super) rules: usize,
}

fn header() -> Nfgenmsg {
    Nfgenmsg {
        nfgen_family: INET,
        ..Nfgenmsg::default()
    }
}

/// The generation of all of nftables: another one after any change by anybody.
pub(super) fn generation() -> Result<u32, Error> {
    let refused = Error::refused("tell the generation of");
    let mut socket = NetlinkSocket::new();
    let request = Request::new().op_getgen_do(&Nfgenmsg::new());
    let mut reply = socket.request(&request)?;
    let (_, attributes) = reply.recv_one().map_err(&refused)?;
    Ok(attributes.get_id().unwrap_or(0))
}

/// What is in the kernel, or `None` where there is no table of veer's.
pub(super) fn shape() -> Result<Option<Shape>, Error> {
    let refused = Error::refused("list");
    let mut socket = NetlinkSocket::new();
    let tables = Request::new().op_gettable_dump(&header());
    let mut digest = None;
    let mut reply = socket.request(&tables)?;
    while let Some(table) = reply.recv() {
        let (_, attributes) = table.map_err(&refused)?;
        if attributes.get_name().is_ok_and(|name| name == TABLE) {
            // A table of the name without our digest is replaced.
            let found = attributes
                .get_userdata()
                .ok()
                .and_then(|d| d.try_into().ok());
            digest = Some(found.map_or(0, u64::from_ne_bytes));
        }
    }
    drop(reply);
    let Some(digest) = digest else {
        return Ok(None);
    };
    let mut rules = 0;
    let mut request = Request::new().op_getrule_dump(&header());
    request.encode().push_table(TABLE);
    let mut reply = socket.request(&request)?;
    while let Some(rule) = reply.recv() {
        let (_, attributes) = rule.map_err(&refused)?;
        if attributes.get_table().is_ok_and(|name| name == TABLE) {
            rules += 1;
        }
    }
    Ok(Some(Shape { digest, rules }))
}

/// Replaces the table, whole, in one transaction.
pub(super) fn replace(chains: &[Chain], nodes: &[Ipv4Addr], digest: u64) -> Result<(), Error> {
    transaction("write", |batch| {
        // Made if absent, so that removing it cannot fail.
        batch
            .request()
            .set_create()
            .op_newtable_do(&header())
            .encode()
            .push_name(TABLE);
        batch
            .request()
            .op_deltable_do(&header())
            .encode()
            .push_name(TABLE);
        batch
            .request()
            .set_create()
            .op_newtable_do(&header())
            .encode()
            .push_name(TABLE)
            .push_userdata(&digest.to_ne_bytes());
        push_nodes(batch, nodes);
        for chain in chains {
            push_chain(batch, chain);
        }
    })
}

/// Removes the table if it is there.
pub(super) fn remove() -> Result<(), Error> {
    transaction("remove", |batch| {
        batch
            .request()
            .set_create()
            .op_newtable_do(&header())
            .encode()
            .push_name(TABLE);
        batch
            .request()
            .op_deltable_do(&header())
            .encode()
            .push_name(TABLE);
    })
}

fn push_nodes(batch: &mut Chained<'static>, nodes: &[Ipv4Addr]) {
    batch
        .request()
        .set_create()
        .op_newset_do(&header())
        .encode()
        .push_table(TABLE)
        .push_name(NODE_SET)
        .push_id(NODE_SET_ID)
        .push_key_type(TYPE_IPV4)
        .push_key_len(4);
    for some in nodes.chunks(ELEMENTS_AT_ONCE) {
        let mut request = batch.request().set_create().op_newsetelem_do(&header());
        let mut list = request
            .encode()
            .push_table(TABLE)
            .push_set(NODE_SET)
            .push_set_id(NODE_SET_ID)
            .nested_elements();
        for node in some {
            list = list
                .nested_elem()
                .nested_key()
                .push_value(&node.octets())
                .end_nested()
                .end_nested();
        }
        list.end_nested();
    }
}

fn push_chain(batch: &mut Chained<'static>, chain: &Chain) {
    batch
        .request()
        .set_create()
        .op_newchain_do(&header())
        .encode()
        .push_table(TABLE)
        .push_name(chain.name)
        .push_type(chain.kind)
        .nested_hook()
        .push_num(chain.hook as u32)
        .push_priority(chain.priority)
        .end_nested();
    for rule in &chain.rules {
        let mut request = batch
            .request()
            .set_create()
            .set_append()
            .op_newrule_do(&header());
        let mut list = request
            .encode()
            .push_table(TABLE)
            .push_chain(chain.name)
            .nested_expressions();
        for expression in rule {
            list = expression.push(list);
        }
        list.end_nested();
    }
}

fn transaction(what: &'static str, fill: impl FnOnce(&mut Chained<'static>)) -> Result<(), Error> {
    /// More messages than any table of veer's has.
    const MESSAGES: u32 = 4096;
    /// `NFNL_SUBSYS_NFTABLES`: whose batch it is.
    const SUBSYSTEM: u16 = 10;
    let mut socket = NetlinkSocket::new();
    let mut batch = Chained::new(socket.reserve_seq(MESSAGES));
    let mut bounds = Nfgenmsg::new();
    bounds.set_res_id(SUBSYSTEM);
    batch.request().op_batch_begin_do(&bounds);
    fill(&mut batch);
    batch.request().op_batch_end_do(&bounds);
    socket
        .request_chained(&batch.finalize())?
        .recv_all()
        .map_err(Error::refused(what))
}

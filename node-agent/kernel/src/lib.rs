//! What reads and writes the kernel: maps and programs, netlink, nftables, sysctls.
//! No API client. Each part compares what is with what is wanted and changes the
//! difference only; what it changed that somebody else had done goes into the round's
//! log ([`veer_agent_core::repair::RoundLog`]).

pub mod attachments;
pub mod clock;
pub mod datapath;
pub mod error;
pub mod lock;
pub mod netlink;
pub mod nft;
pub mod observe;
pub mod probe;
pub mod stack;

//! `veer monitor`: the programs' decisions as they are made, of this node or of others.

mod local;
mod merge;
mod names;
mod options;
mod row;
mod sink;
mod text;

use crate::{arguments::Arguments, output::Next};
pub(crate) use options::Options;
use row::Row;
use sink::Sink;

/// Prints decisions until it is interrupted, has printed enough, or nobody reads.
pub(crate) fn run(arguments: &Arguments, options: &Options) -> anyhow::Result<()> {
    if options.all_nodes || arguments.node.is_some() {
        merge::run(arguments, options)
    } else {
        local::run(arguments, options)
    }
}

/// The sink, and how much it takes.
struct Printer {
    sink: Sink,
    /// Decisions until the end.
    left: Option<u64>,
}

impl Printer {
    fn open(arguments: &Arguments, options: &Options) -> anyhow::Result<Self> {
        let path = options.pcap.as_deref();
        Ok(Self {
            sink: Sink::open(path, arguments.output, options.verbose)?,
            left: options.count,
        })
    }

    /// Takes a row.
    fn put(&mut self, row: &Row) -> anyhow::Result<Next> {
        let next = self.sink.put(row)?;
        if let (Row::Decision(_), Some(left)) = (row, &mut self.left) {
            *left -= 1;
            if *left == 0 {
                self.sink.flush()?;
                return Ok(Next::Unwanted);
            }
        }
        Ok(next)
    }

    fn flush(&mut self) -> anyhow::Result<Next> {
        self.sink.flush()
    }
}

//! The figures as tables for people.

use comfy_table::{ContentArrangement, Table, presets::ASCII_MARKDOWN};

use crate::{
    families,
    figures::Figures,
    gaps::{self, GAP},
    listening,
    measure::{
        P50, P99, STREAM,
        subject::{self, NATIVE, NODE, SAME, TUNNEL, VETH},
    },
    programs::{NANOSECONDS, NANOSECONDS_V6, TO_BEFORE, TO_V4},
    services,
    wiring::fact,
};

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

use Bound::{AtLeast, AtMost};

/// A bound on a ratio: no more, or no less.
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn verdict(&self, value: Option<f64>) -> String {
        let Some(value) = value else {
            return "not measured".to_owned();
        };
        let (wanted, held) = match self {
            Self::AtMost(most) => (format!("≤ {most:.2}"), value <= *most),
            Self::AtLeast(least) => (format!("≥ {least:.2}"), value >= *least),
        };
        format!("{wanted}: {}", if held { "held" } else { "MISSED" })
    }
}

fn two(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"))
}

/// All tables.
pub(crate) fn tables(figures: &Figures) -> String {
    [
        networks(figures),
        goals(figures),
        rest(figures),
        programs(figures),
    ]
    .join("\n\n")
}

/// Round trips and streams.
pub(crate) fn networks(figures: &Figures) -> String {
    [network(figures), both_families(figures)].join("\n\n")
}

fn network(figures: &Figures) -> String {
    let mut table = table(&[
        "path",
        "p50 us (spread)",
        "p99 us",
        "× base",
        "stream Gb/s (spread)",
        "× base",
        "base",
    ]);
    for (name, base) in [
        (subject::VETH, subject::VETH),
        (subject::PEER, subject::VETH),
        (subject::BRIDGE_SAME, subject::VETH),
        (subject::SAME, subject::VETH),
        (subject::NODE, subject::NODE),
        (subject::VXLAN, subject::NODE),
        (subject::BRIDGE_OTHER, subject::NODE),
        (subject::TUNNEL, subject::NODE),
        (subject::NATIVE, subject::NODE),
    ] {
        let with_spread = |quantity: &str| {
            let spread = figures.spread(name, quantity);
            let spread = spread.map_or_else(String::new, |(a, b)| format!(" ({a:.1} to {b:.1})"));
            format!("{}{spread}", two(figures.median(name, quantity)))
        };
        table.add_row([
            name.to_owned(),
            with_spread(P50),
            two(figures.median(name, P99)),
            two(figures.ratio(name, base, P50)),
            with_spread(STREAM),
            two(figures.ratio(name, base, STREAM)),
            base.to_owned(),
        ]);
    }
    table.to_string()
}

/// The same paths in both families.
fn both_families(figures: &Figures) -> String {
    let [rtt4, rtt6] = families::MEAN;
    let [stream4, stream6] = families::STREAM;
    let (to_v4, stream_to_v4) = ("round trip, IPv6 to IPv4", "stream, IPv6 to IPv4");
    let mut table = table(&["path", rtt4, rtt6, to_v4, stream4, stream6, stream_to_v4]);
    for name in families::SUBJECTS {
        let median = |quantity| two(figures.median(name, quantity));
        let ratio = |a, b| two(figures.ratio_of(name, a, b));
        table.add_row([
            name.to_owned(),
            median(rtt4),
            median(rtt6),
            ratio(rtt6, rtt4),
            median(stream4),
            median(stream6),
            ratio(stream6, stream4),
        ]);
    }
    table.to_string()
}

fn goals(figures: &Figures) -> String {
    let mut table = table(&["goal", "measured", "verdict"]);
    let mut row = |what: &str, value: Option<f64>, bound: &Bound| {
        table.add_row([what.to_owned(), two(value), bound.verdict(value)]);
    };
    let ratio = |name, base, quantity| figures.ratio(name, base, quantity);
    row(
        "same node, round trip × veth",
        ratio(SAME, VETH, P50),
        &AtMost(1.05),
    );
    row(
        "native, round trip × node",
        ratio(NATIVE, NODE, P50),
        &AtMost(1.00),
    );
    row(
        "native, stream × node",
        ratio(NATIVE, NODE, STREAM),
        &AtLeast(1.00),
    );
    row(
        "tunnel, round trip × node",
        ratio(TUNNEL, NODE, P50),
        &AtMost(1.30),
    );
    row(
        "tunnel, stream × node",
        ratio(TUNNEL, NODE, STREAM),
        &AtLeast(0.85),
    );
    for name in families::SUBJECTS {
        let [v4, v6] = families::MEAN;
        let what = format!("{name}, round trip, IPv6 × IPv4");
        row(&what, figures.ratio_of(name, v6, v4), &AtMost(1.03));
    }
    for (what, subject) in [
        (
            "change of mode, longest gap × the load's own",
            gaps::subject::CHANGE,
        ),
        (
            "agents killed, longest gap × the load's own",
            gaps::subject::KILLED,
        ),
    ] {
        let gap = ratio(subject, gaps::subject::UNDISTURBED, GAP);
        row(what, gap, &AtMost(3.0));
    }
    row(
        "ADD alone p50, ms",
        figures.median(fact::ADD_ALONE, fact::ADD),
        &AtMost(30.0),
    );
    row(
        "agent resident, MiB",
        figures.median("veer-agent", "resident, MiB"),
        &AtMost(20.0),
    );
    row(
        "operator resident, MiB",
        figures.median("veer-operator", "resident, MiB"),
        &AtMost(40.0),
    );
    row(
        "agent's start to ready, ms",
        figures.median(fact::RESTART, fact::READY),
        &AtMost(1000.0),
    );
    table.to_string()
}

fn rest(figures: &Figures) -> String {
    let mut table = table(&["other", "p50", "p99", "spread"]);
    for (name, quantity) in [
        (fact::ADD_ALONE, fact::ADD),
        (fact::ADD_AT_ONCE, fact::ADD),
        (fact::ATTACH, fact::TWO),
        (fact::RESTART, fact::STARTED),
        (fact::RESTART, fact::READY),
    ] {
        let spread = figures.spread(name, quantity);
        table.add_row([
            format!("{name}, {quantity}"),
            two(figures.median(name, quantity)),
            two(figures.percentile(name, quantity, 99)),
            spread.map_or_else(|| "-".to_owned(), |(a, b)| format!("{a:.1} to {b:.1}")),
        ]);
    }
    for (name, value) in &figures.facts {
        table.add_row([
            name.clone(),
            format!("{value:.1}"),
            String::new(),
            String::new(),
        ]);
    }
    table.to_string()
}

/// What it takes to listen.
pub(crate) fn monitor(figures: &Figures) -> String {
    use listening::{AGENT, COMMAND, LISTENERS, LOST, SENT};
    let mut table = table(&["who listens", SENT, AGENT, COMMAND, LOST]);
    for (name, _) in LISTENERS {
        let mut row = vec![name.to_owned()];
        row.extend([SENT, AGENT, COMMAND, LOST].map(|what| two(figures.median(name, what))));
        table.add_row(row);
    }
    table.to_string()
}

/// Nanoseconds per packet of each program.
pub(crate) fn programs(figures: &Figures) -> String {
    let compared = !figures.subjects(TO_BEFORE).is_empty();
    let mut columns = vec!["program: packet", NANOSECONDS, NANOSECONDS_V6, TO_V4];
    columns.extend(compared.then_some(TO_BEFORE));
    let mut table = table(&columns);
    let text = |value: Option<f64>, digits| {
        value.map_or_else(|| "-".to_owned(), |v: f64| format!("{v:.digits$}"))
    };
    for name in figures.subjects(NANOSECONDS) {
        let mut row = vec![name.to_owned()];
        row.extend(columns[1..].iter().map(|quantity| {
            let digits = if quantity.starts_with("ns") { 0 } else { 2 };
            text(figures.median(name, quantity), digits)
        }));
        table.add_row(row);
    }
    table.to_string()
}

/// Who brings the client's packets to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Nobody: it sends to the backend's own address.
    Direct,
    /// The host's stack.
    KubeProxy,
    /// veer's programs.
    Veer,
}

impl By {
    /// All, in the order of the report.
    pub(crate) const ALL: [Self; 3] = [Self::Direct, Self::KubeProxy, Self::Veer];

    /// As the report calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::KubeProxy => "kube-proxy",
            Self::Veer => "veer",
        }
    }

    /// At the backends, and at their Services if it goes through one: where connections
    /// are opened and closed, and where one stays.
    pub(crate) fn ports(self) -> [u16; 2] {
        match self {
            Self::Direct => [7071, 7072],
            Self::KubeProxy => [7073, 7074],
            Self::Veer => [7075, 7076],
        }
    }
}

/// Names of the series about Services.
pub(crate) mod service {
    use super::By;

    /// Connections opened, read from and closed, one after the other.
    pub(crate) const CONNECTIONS: &str = "connections/s";
    /// Median and 99th percentile of the time of one.
    pub(crate) const CONNECTION: [&str; 2] = ["connection p50, us", "connection p99, us"];
    /// Resident memory, the median of all nodes' agents.
    pub(crate) const MEMORY: &str = "agent resident, MiB";
    /// From the end of the last call that creates some.
    pub(crate) const TAKEN_IN: &str = "last one created until all nodes' maps have all, s";
    /// From the new process on.
    pub(crate) const READY: &str = "agent's start to ready, ms";
    /// From the new process on, the time of the answer itself included.
    pub(crate) const LISTED: &str = "agent's start until it lists all, s";

    /// The subject of a series.
    pub(crate) fn subject(size: usize, path: &str, by: By) -> String {
        format!("{}, {path}, {}", of(size), by.name())
    }

    /// The subject of what does not depend on path and translator.
    pub(crate) fn of(size: usize) -> String {
        format!("{size} Services")
    }
}

/// Connections through one Service among so many, and what so many cost the agents.
pub(crate) fn services(figures: &Figures, sizes: &[usize]) -> String {
    [through(figures, sizes), many(figures, sizes)].join("\n\n")
}

/// By path and translator. Ratios are of each round to the same round.
fn through(figures: &Figures, sizes: &[usize]) -> String {
    use service::CONNECTIONS;
    let [connection_p50, connection_p99] = service::CONNECTION;
    let mut table = table(&[
        "Services",
        "path",
        "by",
        CONNECTIONS,
        "× kube-proxy",
        "× direct",
        connection_p50,
        connection_p99,
        P50,
        "× kube-proxy",
        "× direct",
        P99,
    ]);
    for size in sizes {
        for (path, _) in services::PATHS {
            for by in By::ALL {
                let subject = |by| service::subject(*size, path, by);
                let name = subject(by);
                let median = |quantity| two(figures.median(&name, quantity));
                let ratio = |to, quantity| two(figures.ratio(&name, &subject(to), quantity));
                let in_a_second = figures.median(&name, CONNECTIONS);
                table.add_row([
                    size.to_string(),
                    path.to_owned(),
                    by.name().to_owned(),
                    in_a_second.map_or_else(|| "-".to_owned(), |v| format!("{v:.0}")),
                    ratio(By::KubeProxy, CONNECTIONS),
                    ratio(By::Direct, CONNECTIONS),
                    median(connection_p50),
                    median(connection_p99),
                    median(P50),
                    ratio(By::KubeProxy, P50),
                    ratio(By::Direct, P50),
                    median(P99),
                ]);
            }
        }
    }
    table.to_string()
}

/// What does not depend on path and translator.
fn many(figures: &Figures, sizes: &[usize]) -> String {
    let quantities = [
        service::MEMORY,
        service::TAKEN_IN,
        service::READY,
        service::LISTED,
    ];
    let mut table = table(&[&["Services"][..], &quantities].concat());
    for size in sizes {
        let name = service::of(*size);
        let values = quantities.map(|quantity| two(figures.median(&name, quantity)));
        let row = [size.to_string()].into_iter().chain(values);
        table.add_row(row);
    }
    table.to_string()
}

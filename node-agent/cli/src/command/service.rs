//! `veer service list`: what clients send to, who translates it for this node's pods, and
//! how many backends it may go to.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use veer_agent_api::{Request, ServiceRow};

use super::{Ask, answer};
use crate::{
    arguments::Format,
    filter,
    output::{self, columns_or, or_dash},
};

/// Options of `veer service list`. Values of one option are alternatives, and all options
/// must hold together. Addresses and ports may be of frontends or of backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    /// Only Services of this namespace.
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Vec<String>,

    /// Only what has a frontend or a backend with this address, or in this prefix.
    #[arg(long, value_name = "ADDRESS[/BITS]", value_parser = filter::prefix)]
    pub(crate) address: Vec<IpNet>,

    /// Only what has a frontend or a backend with this port.
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Vec<u16>,
}

impl Options {
    /// Whether a port of a Service is wanted.
    fn wants(&self, row: &ServiceRow) -> bool {
        let backends = row.backends.iter().map(|backend| backend.address);
        let ends: Vec<SocketAddr> = row.frontends.iter().copied().chain(backends).collect();
        let address = |net: &IpNet| ends.iter().any(|end| net.contains(&end.ip()));
        let port = |port: &u16| ends.iter().any(|end| end.port() == *port);
        (self.namespace.is_empty() || self.namespace.contains(&row.namespace))
            && (self.address.is_empty() || self.address.iter().any(address))
            && (self.port.is_empty() || self.port.iter().any(port))
    }

    /// Adds the same options to the words of a command line.
    pub(super) fn add_to(&self, words: &mut Vec<String>) {
        filter::add(words, "namespace", &self.namespace);
        filter::add(words, "address", &self.address);
        filter::add(words, "port", &self.port);
    }
}

/// The wanted Services.
pub(super) fn list(options: &Options, format: Format, ask: Ask<'_>) -> anyhow::Result<String> {
    let mut rows: Vec<ServiceRow> = answer(ask, &Request::Services)?;
    let is_any = !rows.is_empty();
    rows.retain(|row| options.wants(row));
    output::render(&rows, format, |rows| table(rows, is_any))
}

/// The table, a line for each frontend, and below it why there is no backend.
/// `is_any`: there are Services, wanted or not.
fn table(rows: &[ServiceRow], is_any: bool) -> String {
    let mut cells = Vec::new();
    for row in rows {
        cells.extend(row.frontends.iter().map(|frontend| {
            [
                service(row),
                or_dash(&row.port),
                frontend.to_string(),
                row.protocol.clone(),
                row.mode.clone(),
                backends(row),
            ]
        }));
    }
    let nothing = if is_any {
        "No Service is as the options say (veer service list)."
    } else {
        "No Service with an address is known, or not yet (veer status)."
    };
    let header = ["SERVICE", "PORT", "FRONTEND", "PROTOCOL", "BY", "BACKENDS"];
    let table = columns_or(nothing, header, cells);
    // Once for all frontends of a port.
    let unserved = rows.iter().filter(|row| !row.unserved.is_empty());
    let reasons: BTreeSet<String> = unserved.map(reason).collect();
    if reasons.is_empty() {
        return table;
    }
    let reasons: Vec<String> = reasons.into_iter().collect();
    format!("{table}\n\n{}", reasons.join("\n"))
}

/// `namespace/name`.
fn service(row: &ServiceRow) -> String {
    format!("{}/{}", row.namespace, row.name)
}

/// How many of the backends new flows may go to.
fn backends(row: &ServiceRow) -> String {
    if !row.unserved.is_empty() {
        return "none".to_owned();
    }
    let chosen = row.backends.iter().filter(|backend| backend.chosen);
    format!("{} of {}", chosen.count(), row.backends.len())
}

/// Why a port has no backend.
fn reason(row: &ServiceRow) -> String {
    let (service, unserved) = (service(row), &row.unserved);
    if row.port.is_empty() {
        format!("{service}: {unserved}")
    } else {
        format!("{service}, port {}: {unserved}", row.port)
    }
}

#[cfg(test)]
mod tests {
    use veer_agent_api::BackendRow;

    use super::*;
    use crate::filter::parsed;

    fn options(words: &[&str]) -> Options {
        parsed(words).unwrap()
    }

    fn row(service: [&str; 2], port: &str, frontends: &[&str]) -> ServiceRow {
        let [namespace, name] = service.map(ToOwned::to_owned);
        let backend = |address: &str, chosen: bool| BackendRow {
            address: address.parse().unwrap(),
            state: if chosen { "ready" } else { "not-ready" }.to_owned(),
            chosen,
            node: Some("a".to_owned()),
        };
        ServiceRow {
            namespace,
            name,
            port: port.to_owned(),
            protocol: "tcp".to_owned(),
            family: "IPv4".to_owned(),
            external: false,
            frontends: frontends.iter().map(|f| f.parse().unwrap()).collect(),
            mode: "veer".to_owned(),
            affinity: 0,
            unserved: String::new(),
            backends: vec![
                backend("10.0.1.7:8080", true),
                backend("10.0.2.7:8080", false),
            ],
        }
    }

    /// A port with backends, and one without that has two frontends.
    fn rows() -> Vec<ServiceRow> {
        let unserved = ServiceRow {
            mode: "kube-proxy".to_owned(),
            unserved: "it has no endpoints".to_owned(),
            backends: vec![],
            ..row(["web", "old"], "", &["10.96.0.11:53", "192.0.2.9:53"])
        };
        vec![row(["shop", "cart"], "http", &["10.96.0.10:80"]), unserved]
    }

    fn listed(options: &Options, format: Format, rows: &[ServiceRow]) -> String {
        let ask: Ask<'_> = &|request| {
            assert_eq!(*request, Request::Services);
            serde_json::to_value(rows).map_err(anyhow::Error::from)
        };
        list(options, format, ask).unwrap()
    }

    #[test]
    fn the_table_has_a_line_for_each_frontend_and_says_once_why_it_has_no_backend() {
        let expected = [
            "SERVICE    PORT  FRONTEND       PROTOCOL  BY          BACKENDS",
            "shop/cart  http  10.96.0.10:80  tcp       veer        1 of 2",
            "web/old    -     10.96.0.11:53  tcp       kube-proxy  none",
            "web/old    -     192.0.2.9:53   tcp       kube-proxy  none",
            "",
            "web/old: it has no endpoints",
        ];
        let text = listed(&Options::default(), Format::Table, &rows());
        assert_eq!(text, expected.join("\n"));
    }

    #[test]
    fn no_service_and_no_wanted_service_are_told_apart() {
        let options = options(&["--namespace", "other"]);
        let none = listed(&options, Format::Table, &[]);
        assert!(none.starts_with("No Service with an address"), "{none}");
        let unwanted = listed(&options, Format::Table, &rows());
        assert!(unwanted.starts_with("No Service is as"), "{unwanted}");
        assert_eq!(listed(&options, Format::Json, &rows()), "[]");
    }

    #[test]
    fn each_option_holds_for_frontends_and_backends_and_all_must_hold() {
        let row = row(["shop", "cart"], "http", &["10.96.0.10:80"]);
        for (words, wanted) in [
            (&[][..], true),
            (&["--namespace", "shop"], true),
            (&["--namespace", "web"], false),
            (&["--namespace", "web", "--namespace", "shop"], true),
            (&["--address", "10.96.0.10"], true),
            (&["--address", "10.0.2.0/24"], true),
            (&["--address", "fd00::/8"], false),
            (&["--port", "80"], true),
            (&["--port", "8080"], true),
            (&["--port", "443"], false),
            (&["--namespace", "web", "--port", "80"], false),
        ] {
            assert_eq!(options(words).wants(&row), wanted, "{words:?}");
        }
    }

    #[test]
    fn json_has_the_wanted_services_as_the_agent_gives_them() {
        let options = options(&["--namespace", "web"]);
        let text = listed(&options, Format::Json, &rows());
        let read: Vec<ServiceRow> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, rows()[1..]);
    }

    #[test]
    fn the_words_for_another_node_mean_the_same() {
        let words = [
            "--namespace",
            "shop",
            "--address",
            "10.0.0.0/8",
            "--port",
            "80",
        ];
        let first = options(&words);
        let mut again = Vec::new();
        first.add_to(&mut again);
        assert_eq!(again, words);
    }
}

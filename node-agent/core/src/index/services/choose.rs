//! The choice among endpoints, the one that kube-proxy 1.34 makes.

use super::{EndpointRecord, EndpointState};

/// Where flows come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here<'a> {
    /// The node.
    pub(super) node: &'a str,
    /// Its zone; `None`: not known.
    pub(super) zone: Option<&'a str>,
    /// Flows stay on the node.
    pub(super) only: bool,
}

/// Endpoints near enough.
#[derive(Clone, Copy, Debug)]
enum Near<'a> {
    /// All.
    Any,
    /// Those that have a hint for this node.
    ForNode(&'a str),
    /// Those that have a hint for this zone.
    ForZone(&'a str),
}

impl Near<'_> {
    /// The hints of an endpoint that count.
    fn hints(self, endpoint: &EndpointRecord) -> &[String] {
        match self {
            Self::Any => &[],
            Self::ForNode(_) => &endpoint.for_nodes,
            Self::ForZone(_) => &endpoint.for_zones,
        }
    }

    fn has(self, endpoint: &EndpointRecord) -> bool {
        match self {
            Self::Any => true,
            Self::ForNode(place) | Self::ForZone(place) => {
                self.hints(endpoint).iter().any(|hint| hint == place)
            }
        }
    }

    /// Whether all endpoints have hints, and one of them is for this place. Other hints are
    /// those of some endpoints only, or of before a change, and traffic would pile up there.
    fn counts(self, ready: &[&EndpointRecord]) -> bool {
        ready.iter().all(|e| !self.hints(e).is_empty()) && ready.iter().any(|e| self.has(e))
    }
}

/// Which of the endpoints new flows may go to, in the order given.
pub(super) fn choose(endpoints: &[&EndpointRecord], here: Here<'_>) -> Vec<bool> {
    let is_here = |endpoint: &EndpointRecord| endpoint.node.as_deref() == Some(here.node);
    let may = |endpoint: &EndpointRecord| !here.only || is_here(endpoint);
    let all = endpoints.iter().copied();
    let ready: Vec<&EndpointRecord> = all.clone().filter(|e| e.ready && may(e)).collect();
    if ready.is_empty() {
        // Better than none: the last ones of a Service go before new ones are ready.
        let leaving = |e: &EndpointRecord| may(e) && e.state() == EndpointState::Terminating;
        return all.map(leaving).collect();
    }
    let near = near(&ready, here);
    all.map(|e| e.ready && may(e) && near.has(e)).collect()
}

/// What the hints of ready endpoints say.
fn near<'a>(ready: &[&EndpointRecord], here: Here<'a>) -> Near<'a> {
    if here.only {
        return Near::Any;
    }
    let for_node = Near::ForNode(here.node);
    if for_node.counts(ready) {
        return for_node;
    }
    match here.zone.map(Near::ForZone) {
        Some(for_zone) if for_zone.counts(ready) => for_zone,
        Some(_) | None => Near::Any,
    }
}

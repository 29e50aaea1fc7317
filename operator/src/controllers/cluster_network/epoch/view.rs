//! What the members have done of an epoch, and which pairs fail in it.

use std::collections::BTreeSet;

use veer_crds::v1alpha1::{Epoch, NodeReason, Phase, ProbeReport};

use super::Member;

/// The members, seen from an epoch.
pub(super) struct EpochProgress<'a> {
    pub(super) epoch: &'a Epoch,
    pub(super) members: &'a [Member],
    ready: BTreeSet<&'a str>,
}

/// Whether two epochs are of the same change.
pub(super) fn same(a: &Epoch, b: &Epoch) -> bool {
    a.cluster_network_uid == b.cluster_network_uid && a.number == b.number
}

impl<'a> EpochProgress<'a> {
    pub(super) fn new(epoch: &'a Epoch, members: &'a [Member]) -> Self {
        let ready = members.iter().filter(|m| m.ready());
        Self {
            epoch,
            members,
            ready: ready.map(|m| m.name.as_str()).collect(),
        }
    }

    /// The ready members.
    pub(super) fn ready(&self) -> impl Iterator<Item = &'a Member> + Clone + use<'a> {
        self.members.iter().filter(|m| m.ready())
    }

    /// A member's last order in this change.
    pub(super) fn told<'m>(&self, member: &'m Member) -> Option<&'m Epoch> {
        member.told.as_ref().filter(|told| same(told, self.epoch))
    }

    /// Whether a member was ordered to take this step or a later one.
    pub(super) fn is_told(&self, member: &Member, phase: Phase) -> bool {
        self.told(member).is_some_and(|told| told.phase >= phase)
    }

    /// Whether a member acknowledged a step, under the attempt of its order.
    pub(super) fn done(&self, member: &Member, phase: Phase) -> bool {
        let told = self.told(member).filter(|told| told.phase == phase);
        let attempt = told.map_or(0, |told| told.attempt);
        let applied = member.applied.as_ref().filter(|a| same(a, self.epoch));
        match phase {
            // A member with a later order has done this step.
            Phase::Preflight => {
                applied.is_some_and(|a| a.phase > phase)
                    || self.is_told(member, Phase::Prepare)
                    || self.report(member).is_some_and(|r| r.attempt >= attempt)
            }
            Phase::Switch => applied
                .is_some_and(|a| a.phase > phase || (a.phase == phase && a.attempt >= attempt)),
            Phase::Prepare | Phase::Finalize | Phase::Ready => {
                applied.is_some_and(|a| a.phase >= phase)
            }
        }
    }

    /// The last step that a member acknowledged.
    pub(super) fn last_done(&self, member: &Member) -> Option<Phase> {
        [
            Phase::Ready,
            Phase::Finalize,
            Phase::Switch,
            Phase::Prepare,
            Phase::Preflight,
        ]
        .into_iter()
        .find(|phase| self.done(member, *phase))
    }

    /// Whether all ready members acknowledged a step.
    pub(super) fn all_ready_done(&self, phase: Phase) -> bool {
        self.ready().all(|member| self.done(member, phase))
    }

    /// Ready members that have the order to switch and have not acknowledged it.
    pub(super) fn switching(&self) -> usize {
        let told = |m: &&Member| self.told(m).is_some_and(|t| t.phase == Phase::Switch);
        self.ready()
            .filter(told)
            .filter(|m| !self.done(m, Phase::Switch))
            .count()
    }

    fn report<'m>(&self, member: &'m Member) -> Option<&'m ProbeReport> {
        let of = |report: &&ProbeReport| report.number == self.epoch.number;
        member.probes.as_ref().filter(of)
    }

    /// Named peers that do not answer a ready member in the target form. A peer that
    /// is not ready does not count: it goes to the new mode on its own.
    pub(super) fn failed<'m>(
        &self,
        member: &'m Member,
    ) -> impl Iterator<Item = &'m NodeReason> + use<'_, 'a, 'm> {
        self.named(self.spoken(member).map(|report| &report.failed))
    }

    /// Named peers that a ready member switched to and fell back from.
    pub(super) fn fell_back<'m>(
        &self,
        member: &'m Member,
    ) -> impl Iterator<Item = &'m NodeReason> + use<'_, 'a, 'm> {
        self.named(self.spoken(member).map(|report| &report.fell_back))
    }

    /// How many pairs of a ready member with ready peers fail beside the named ones,
    /// at least: among the unnamed ones, as many may be not ready as there are
    /// members that are not.
    pub(super) fn unnamed(&self, member: &Member) -> usize {
        let Some(report) = self.spoken(member) else {
            return 0;
        };
        let beyond = |count: i32, named: &[NodeReason]| {
            usize::try_from(count)
                .unwrap_or(0)
                .saturating_sub(named.len())
        };
        let sorts = [
            (report.failed_count, &report.failed),
            (report.fell_back_count, &report.fell_back),
        ];
        let beyond: usize = sorts
            .iter()
            .map(|(count, named)| beyond(*count, named))
            .sum();
        let named: BTreeSet<&str> = sorts
            .iter()
            .flat_map(|(_, named)| named.iter())
            .map(|peer| peer.node.as_str())
            .collect();
        let absent = self.members.iter().filter(|m| !m.ready());
        let absent = absent.filter(|m| !named.contains(m.name.as_str())).count();
        beyond.saturating_sub(absent)
    }

    /// What a ready member reports of the present change.
    fn spoken<'m>(&self, member: &'m Member) -> Option<&'m ProbeReport> {
        self.report(member).filter(|_| member.ready())
    }

    fn named<'m>(
        &self,
        peers: Option<&'m Vec<NodeReason>>,
    ) -> impl Iterator<Item = &'m NodeReason> + use<'_, 'a, 'm> {
        let peers = peers.into_iter().flatten();
        peers.filter(|peer| self.ready.contains(peer.node.as_str()))
    }

    /// Whether any pair of a ready member fails.
    pub(super) fn fails(&self, member: &Member) -> bool {
        self.failed(member).next().is_some()
            || self.fell_back(member).next().is_some()
            || self.unnamed(member) > 0
    }

    /// Whether a member with failing pairs has no order of the current attempt.
    pub(super) fn may_try_again(&self, member: &Member, phase: Phase) -> bool {
        let behind = |told: &Epoch| told.phase == phase && told.attempt < self.epoch.attempt;
        matches!(phase, Phase::Preflight | Phase::Switch)
            && self.told(member).is_some_and(behind)
            && self.fails(member)
    }
}

//! Claims: the only code that gives out blocks.
//!
//! A block is taken by creating the object named after it, so of two leaders one
//! fails. Blocks of different sizes have different names and could still overlap. So
//! a claim is checked against a list read from the server, after it was created and
//! before its node learns of it, and withdrawn if it overlaps another. Of two leaders
//! that do this at once, at least one sees the other's claim: both may fail, never
//! both succeed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use veer_crds::names::pod_cidr_name;
use veer_crds::v1alpha1::{ClusterNetworkSpec, NodeNetwork, PodCIDR, PodCIDRSpec, PodCidrState};

use super::allocate::{Taken, capacity, lowest_free};
use super::held;
use super::ledger::Ledger;
use super::validate::{Family, ValidatedNode};
use crate::context::Context;
use crate::controllers::pod_cidr::{life::ORPHANED, release};
use crate::error::{Error, api, code, found};

/// How often a search is repeated after it met claims of others.
const TRIES: usize = 64;

/// What a node has after its claims were settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Its blocks, IPv4 first.
    pub(crate) blocks: Vec<IpNet>,
    /// Those of them that are new.
    pub(crate) allocated: Vec<IpNet>,
    /// Why it does not have all the blocks that it should have.
    pub(crate) problem: Option<Problem>,
}

/// Why a node has not all the blocks it should have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// No block is left.
    #[error(
        "no {family} block is left for this node: {figures}; {}add a block to spec.podCIDRs of \
         ClusterNetwork default, or delete Nodes that are gone for good", sentence(.next.as_ref())
    )]
    Exhausted {
        /// Of which family.
        family: Family,
        /// Each entry with its capacity.
        figures: String,
        /// The block that becomes free next.
        next: Option<Freed>,
    },
    /// Ready nodes have not reported yet which blocks they hold.
    #[error(
        "waiting for the agents of these ready nodes to report the blocks they hold: {}; see why \
         their agent does not run, or delete the Nodes", .0.join(", ")
    )]
    Unheard(Vec<String>),
    /// The agent holds a block of another node.
    #[error(
        "this node's agent holds {block}, which is claimed by node {owner}: drain one of the two \
         nodes and delete its Node"
    )]
    HeldByOther {
        /// The block.
        block: IpNet,
        /// Whose it is.
        owner: String,
    },
}

/// A block of a Node that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Freed {
    /// The block.
    pub(crate) block: IpNet,
    /// The Node that had it.
    pub(crate) node: String,
    /// From when on it may be given to another.
    pub(crate) at: Timestamp,
}

fn sentence(next: Option<&Freed>) -> String {
    next.map_or_else(String::new, |Freed { block, node, at }| {
        format!("{block} of node {node}, which is gone, is free from {at} on; until then ")
    })
}

impl Problem {
    /// A fixed word for conditions and events.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Exhausted { .. } => "Exhausted",
            Self::Unheard(_) => "WaitingForAgents",
            Self::HeldByOther { .. } => "HeldByOther",
        }
    }
}

/// Gives the node the claims it should have.
pub(crate) async fn settle(
    context: &Context,
    node: &ValidatedNode,
    spec: &ClusterNetworkSpec,
) -> Result<Outcome, Error> {
    let mut ledger = context.ledger.lock().await;
    let mut outcome = Outcome::default();
    for block in &node.holds {
        if let Some(problem) = reclaim(context, &mut ledger, node, block).await? {
            outcome.problem = Some(problem);
        }
    }
    for family in &node.families {
        let claims = ledger.claims(context.claims.all());
        let kept = kept(&claims, node, *family);
        if family.is_given_up(spec) && kept.is_some_and(|block| node.leaves(&block)) {
            continue;
        }
        if kept.is_some_and(|block| node.leaves(&block))
            && let Ok(block) = allocate(context, &mut ledger, node, spec, *family).await?
        {
            outcome.blocks.push(block);
            outcome.allocated.push(block);
            continue;
        }
        if let Some(block) = kept
            && (node.holds.contains(&block) || verified(context, &mut ledger, &block).await?)
        {
            outcome.blocks.push(block);
            continue;
        }
        // The block that it holds is disputed, and another one would cut off its
        // pods. The agent's report alone is not passed on to others.
        if let Some(block) = node.holds.iter().find(|b| Family::of(b) == *family) {
            outcome
                .blocks
                .extend(node.told.contains(block).then_some(*block));
            continue;
        }
        match allocate(context, &mut ledger, node, spec, *family).await? {
            Ok(block) => {
                outcome.blocks.push(block);
                outcome.allocated.push(block);
            }
            Err(problem) => outcome.problem = Some(problem),
        }
    }
    context
        .metrics
        .claims(ledger.claims(context.claims.all()).len());
    Ok(outcome)
}

async fn verified(context: &Context, ledger: &mut Ledger, block: &IpNet) -> Result<bool, Error> {
    let claimed = verify(context, ledger, &pod_cidr_name(block), block).await?;
    Ok(matches!(claimed, Claimed::Ours))
}

/// The block of a family that a node keeps: the one that its agent holds or that its
/// NodeNetwork has, else the lowest it claims; preferably one that it need not leave.
fn kept(claims: &[Arc<PodCIDR>], node: &ValidatedNode, family: Family) -> Option<IpNet> {
    let mut mine: Vec<IpNet> = claims
        .iter()
        .filter(|c| c.spec.node_name == node.name && Family::of(&c.spec.cidr) == family)
        .map(|c| c.spec.cidr)
        .collect();
    mine.sort();
    let held = node.holds.iter().filter(|b| mine.contains(b));
    let mut all: Vec<IpNet> = held.chain(&mine).copied().collect();
    // Stable: among those that are alike the order stays.
    all.sort_by_key(|block| node.leaves(block));
    all.first().copied()
}

/// Makes the claim of a block that the node holds, where there is none (an
/// etcd restored from before it, or a claim deleted by hand).
async fn reclaim(
    context: &Context,
    ledger: &mut Ledger,
    node: &ValidatedNode,
    block: &IpNet,
) -> Result<Option<Problem>, Error> {
    let claims = ledger.claims(context.claims.all());
    let overlapping = claims.iter().find(|c| overlap(&c.spec.cidr, block));
    // If all claims were deleted, a node whose NodeNetwork has the block comes before
    // a node whose agent reports it.
    let anothers = || {
        let told = |n: &Arc<NodeNetwork>| n.spec.pod_cidrs.iter().any(|b| overlap(b, block));
        let mut others = context.node_networks.all().into_iter();
        others.find(|n| n.name_any() != node.name && told(n))
    };
    let owner = match overlapping {
        Some(claim) if claim.spec.node_name == node.name && claim.spec.cidr == *block => {
            return Ok(None);
        }
        Some(claim) => claim.spec.node_name.clone(),
        None if !node.told.contains(block)
            && let Some(other) = anothers() =>
        {
            other.name_any()
        }
        None => match claim(context, ledger, node, block).await? {
            Claimed::Ours => {
                tracing::info!(node = node.name, %block, "claimed again what the node holds");
                return Ok(None);
            }
            Claimed::Others(claim) => claim.spec.node_name.clone(),
        },
    };
    Ok(Some(Problem::HeldByOther {
        block: *block,
        owner,
    }))
}

/// Finds and claims a free block of a family.
async fn allocate(
    context: &Context,
    ledger: &mut Ledger,
    node: &ValidatedNode,
    spec: &ClusterNetworkSpec,
    family: Family,
) -> Result<Result<IpNet, Problem>, Error> {
    let entries: Vec<(IpNet, u8)> = spec
        .pod_cidrs
        .iter()
        .filter(|e| e.state == PodCidrState::Active && Family::of(&e.cidr) == family)
        .filter_map(|e| Some((e.cidr, u8::try_from(e.node_mask_size).ok()?)))
        .collect();
    // What is free is known from all claims and NodeNetworks together. With one kind
    // deleted, or its watch interrupted, the other alone may be there to tell.
    if context.is_outdated() {
        return Err(Error::Outdated {
            what: format!("find a block for node {}", node.name),
        });
    }
    let claims = ledger.claims(context.claims.all());
    let mut taken: Taken = claims.iter().map(|claim| &claim.spec.cidr).collect();
    let mut owners: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
    for claim in &claims {
        let of = owners.entry(&claim.spec.node_name).or_default();
        of.push(claim.spec.cidr);
    }
    for other in context.node_networks.all() {
        let its = owners.get(other.name_any().as_str());
        let claimed = |block: &IpNet| its.is_some_and(|all| all.contains(block));
        let held = held::judge(Some(&other), &spec.pod_cidrs, claimed);
        for block in held.counts.iter().chain(&other.spec.pod_cidrs) {
            taken.insert(block);
        }
    }
    // Asked after what is free was read: a list that came in between counts.
    let unheard = context.unheard();
    if !unheard.is_empty() {
        return Ok(Err(Problem::Unheard(unheard)));
    }
    for _ in 0..TRIES {
        let free = entries
            .iter()
            .find_map(|(cidr, mask)| lowest_free(cidr, *mask, &taken));
        let Some(block) = free else {
            return Ok(Err(Problem::Exhausted {
                family,
                figures: figures(&entries),
                next: scarce(context, ledger, &entries).await?,
            }));
        };
        match claim(context, ledger, node, &block).await? {
            Claimed::Ours => return Ok(Ok(block)),
            Claimed::Others(other) => taken.insert(&other.spec.cidr),
        }
    }
    Err(Error::Conflict {
        what: format!("find a block for node {}", node.name),
    })
}

/// For a cluster without a free block: the block of the Node that is gone for
/// longest, or when it will be free. Its pods are gone from the API by then, and so
/// from a machine that still runs.
async fn scarce(
    context: &Context,
    ledger: &mut Ledger,
    entries: &[(IpNet, u8)],
) -> Result<Option<Freed>, Error> {
    let claims = ledger.claims(context.claims.all());
    let orphan = claims
        .iter()
        .filter(|c| entries.iter().any(|(cidr, _)| cidr.contains(&c.spec.cidr)))
        .filter(|c| context.nodes.get(&c.spec.node_name).is_none())
        .filter_map(|claim| {
            let status = claim.status.as_ref().filter(|s| s.state == ORPHANED)?;
            let since: Timestamp = status.orphaned_since.as_ref()?.parse().ok()?;
            Some((since, claim))
        })
        .min_by_key(|(since, claim)| (*since, claim.name_any()));
    let Some((since, claim)) = orphan else {
        return Ok(None);
    };
    let at = since
        .saturating_add(context.settings.scarce)
        .unwrap_or(since);
    if at > Timestamp::now() || !release::is_empty(context, &claim.spec.node_name).await? {
        return Ok(Some(Freed {
            block: claim.spec.cidr,
            node: claim.spec.node_name.clone(),
            at,
        }));
    }
    release::release(context, ledger, claim).await?;
    let what = format!(
        "take {} over from {}",
        claim.spec.cidr, claim.spec.node_name
    );
    // The next round finds it free.
    Err(Error::Conflict { what })
}

fn figures(entries: &[(IpNet, u8)]) -> String {
    if entries.is_empty() {
        return "spec.podCIDRs has no Active block of this family".to_owned();
    }
    let each: Vec<String> = entries
        .iter()
        .map(|(cidr, mask)| {
            format!(
                "{cidr} has {} parts of /{mask}, all in use",
                capacity(cidr, *mask)
            )
        })
        .collect();
    each.join(", ")
}

/// The node of a claim after the attempt to create it.
enum Claimed {
    Ours,
    Others(Arc<PodCIDR>),
}

/// Creates the claim of a block for a Node that is gone, if somebody deleted the
/// claim while pods may still run there; returns whether the block is that node's.
pub(crate) async fn keep(context: &Context, name: &str, block: &IpNet) -> Result<bool, Error> {
    let gone = ValidatedNode {
        name: name.to_owned(),
        uid: String::new(),
        holds: Vec::new(),
        told: Vec::new(),
        refused: BTreeSet::new(),
        families: Vec::new(),
        leaves: Vec::new(),
    };
    let mut ledger = context.ledger.lock().await;
    let claims = ledger.claims(context.claims.all());
    if claims
        .iter()
        .any(|c| c.spec.node_name != name && overlap(&c.spec.cidr, block))
    {
        return Ok(false);
    }
    let claimed = claim(context, &mut ledger, &gone, block).await?;
    Ok(matches!(claimed, Claimed::Ours))
}

async fn claim(
    context: &Context,
    ledger: &mut Ledger,
    node: &ValidatedNode,
    block: &IpNet,
) -> Result<Claimed, Error> {
    let claims: Api<PodCIDR> = Api::all(context.client.clone());
    let name = pod_cidr_name(block);
    let wanted = PodCIDR {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        spec: PodCIDRSpec {
            cidr: *block,
            node_name: node.name.clone(),
            node_uid: node.uid.clone(),
        },
        status: None,
    };
    let what = format!("claim {block} for node {}", node.name);
    let params = PostParams {
        field_manager: Some(super::MANAGER.into()),
        ..PostParams::default()
    };
    let made = match claims.create(&params, &wanted).await {
        Ok(made) => made,
        Err(error) if code(&error) == Some(409) => {
            let there = found(claims.get(&name).await).map_err(api(what.clone()))?;
            let there = Arc::new(there.ok_or(Error::Conflict { what })?);
            ledger.remember(Arc::clone(&there));
            if there.spec.node_name == node.name && there.spec.cidr == *block {
                return verify(context, ledger, &name, block).await;
            }
            return Ok(Claimed::Others(there));
        }
        Err(error) => return Err(api(what)(error)),
    };
    ledger.remember(Arc::new(made));
    verify(context, ledger, &name, block).await
}

/// Withdraws a claim that overlaps another of a different size. This is done for
/// every claim whose block its node does not hold yet: the process that created it
/// may have died before the check.
async fn verify(
    context: &Context,
    ledger: &mut Ledger,
    name: &str,
    block: &IpNet,
) -> Result<Claimed, Error> {
    let claims: Api<PodCIDR> = Api::all(context.client.clone());
    let what = format!("check the claim of {block} against all others");
    // Unset, the resourceVersion asks for a read that no cache answers.
    let all = claims
        .list(&ListParams::default())
        .await
        .map_err(api(what.clone()))?;
    let (ours, others): (Vec<PodCIDR>, Vec<PodCIDR>) = all
        .items
        .into_iter()
        .partition(|claim| claim.name_any() == name);
    let Some(ours) = ours.into_iter().next() else {
        ledger.forget(name);
        return Err(Error::Conflict { what });
    };
    let Some(other) = others
        .into_iter()
        .find(|claim| overlap(&claim.spec.cidr, block))
    else {
        return Ok(Claimed::Ours);
    };
    crate::apply::delete(&claims, &ours).await?;
    ledger.forget(name);
    let other = Arc::new(other);
    ledger.remember(Arc::clone(&other));
    Ok(Claimed::Others(other))
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

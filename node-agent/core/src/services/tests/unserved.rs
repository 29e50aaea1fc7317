//! Frontends that lead to no backend.

use super::*;

#[test]
fn a_frontend_without_backends_is_refused_and_where_a_policy_keeps_flows_here_dropped() {
    let mut plan = Plan::default();
    let nobody = port("x/a", &[VIP], &[]);
    let elsewhere = |state| ServicePort {
        local: true,
        ..beside(nobody.clone(), 1, state)
    };
    for (port, refusal) in [
        (nobody.clone(), Some(Refusal::Refuse)),
        (elsewhere(EndpointState::Ready), Some(Refusal::Drop)),
        (elsewhere(EndpointState::NotReady), Some(Refusal::Refuse)),
        (port("x/a", &[VIP], &[1]), None),
        (nobody.clone(), Some(Refusal::Refuse)),
    ] {
        let step = plan.update("x/a", std::slice::from_ref(&port));
        assert!(step.unserved, "{refusal:?}");
        assert_eq!(plan.unserved().get(&key(VIP)).copied(), refusal);
        let again = plan.update("x/a", &[port]);
        assert_eq!(again, Step::default(), "nothing is to be done twice");
    }
    assert!(plan.update("x/a", &[]).unserved && plan.unserved().is_empty());
    plan.update("x/a", &[nobody]);
    assert!(plan.clear().unserved && plan.unserved().is_empty());
    assert!(!plan.clear().unserved);
}

use super::*;
use serde_json::json;

#[test]
fn what_is_out_of_focus_is_no_spec() {
    let spec = |state: &str, message: &str, kind: &str| {
        json!({"LeafNodeType": kind, "LeafNodeText": "should serve [Conformance]",
            "ContainerHierarchyTexts": ["[sig-network] Services"], "State": state,
            "RunTime": 2_000_000_000_u64, "Failure": {"Message": message}})
    };
    let report = json!([{"SpecReports": [
        spec("passed", "", "It"), spec("skipped", "", "It"),
        spec("skipped", "needs two nodes", "It"), spec("passed", "", "BeforeSuite")]}]);
    let specs = parse(&report).expect("a report");
    assert_eq!(specs.len(), 2);
    assert_eq!(specs[0].area(), "Services");
    assert_eq!(specs[0].time, Duration::from_secs(2));
    assert!(specs[0].passed() && !specs[1].passed());
    let broken = json!([{"SpecReports": [spec("failed", "no nodes", "SynchronizedBeforeSuite")]}]);
    assert!(parse(&broken).is_err());
}

#[test]
fn what_is_left_out_has_a_reason_and_all_else_of_the_scope_runs() {
    let stay = [
        "[sig-network] A should",
        "[sig-network] B may [Conformance]",
    ];
    let mut names = stay.map(str::to_owned).to_vec();
    names.extend(
        LEFT_OUT
            .iter()
            .map(|l| format!("[sig-network] C {} would", l.part)),
    );
    let wide = sort_out(&names, Scope::Wide, Families::V4).expect("all fit");
    assert_eq!(wide.run, stay);
    assert_eq!(wide.left_out.len(), LEFT_OUT.len());
    let full = sort_out(&names, Scope::Full, Families::V4).expect("sorted");
    assert_eq!(full.run, stay[1..]);
    names.pop();
    let error = sort_out(&names, Scope::Wide, Families::V4).expect_err("a reason without a spec");
    assert!(
        error
            .to_string()
            .contains(LEFT_OUT[LEFT_OUT.len() - 1].part)
    );
}

#[test]
fn specs_of_both_families_run_where_both_are_but_for_other_reasons() {
    let names = [
        "[sig-network] A should [Conformance]",
        "[sig-network] [Feature:IPv6DualStack] should be able to",
        "[sig-network] [Feature:IPv6DualStack] sctp [Feature:SCTPConnectivity]",
    ]
    .map(str::to_owned);
    for (families, count) in [(Families::V4V6, 2), (Families::V6V4, 2), (Families::V6, 1)] {
        let sorted = sort_out(&names, Scope::Full, families).expect("sorted");
        assert_eq!(sorted.run, names[..count], "{families}");
    }
    let area = |name: &str| {
        let spec = json!({"LeafNodeType": "It", "LeafNodeText": name, "State": "passed"});
        let specs = parse(&json!([{"SpecReports": [spec]}])).expect("a report");
        specs[0].area().to_owned()
    };
    assert_eq!(area(&names[1]), "IPv6DualStack");
}

#[test]
fn the_documentation_names_all_that_is_left_out() {
    let path = crate::lab::repository().join("docs/conformance.md");
    let text = fs::read_to_string(path).expect("docs/conformance.md");
    for LeftOut { part, reason } in &LEFT_OUT {
        assert!(text.contains(&format!("### `{part}`: {reason}")), "{part}");
    }
}

#[test]
fn names_are_matched_literally() {
    assert_eq!(literal("a [x] (1.0)"), r"a \[x\] \(1\.0\)");
}

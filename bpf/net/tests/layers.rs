//! The arrows inside `bpf/programs`: a module uses its own folder and those below.
//!
//! The programs are one crate, so the compiler does not check this; they have no
//! tests of their own, so it is checked here.

#![forbid(unsafe_code)]

use std::{error::Error, fs, path::Path};

/// Every module in the root of the programs, with those that it may use.
const LAYERS: [(&str, &[&str]); 6] = [
    ("ctx", &[]),
    ("state", &["ctx"]),
    ("event", &["state", "ctx"]),
    ("exit", &["event", "state", "ctx"]),
    ("path", &["state", "ctx"]),
    ("hooks", &["path", "exit", "state", "ctx"]),
];

/// `source` without its comments.
fn code(source: &str) -> String {
    let lines = source.lines();
    lines
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The name that `path` begins with.
fn first_name(path: &str) -> &str {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_');
    &path[..end.unwrap_or(path.len())]
}

/// The modules of the root that `code` names: `crate::a`, `crate::{a::b, c}`.
fn named(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for path in code.split("crate::").skip(1) {
        let Some(group) = path.strip_prefix('{') else {
            found.push(first_name(path));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && !c.is_whitespace() => {
                    found.push(first_name(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// What a file of `layer` must not name. `at_root`: its `super` is the root.
fn violations(layer: &str, at_root: bool, source: &str) -> Vec<String> {
    let code = code(source);
    let below = LAYERS.iter().find(|(name, _)| *name == layer);
    let Some((_, below)) = below else {
        return vec![format!("{layer} is no layer")];
    };
    // An entry point names no other, and `super` would be the way to one.
    let own = (layer != "hooks").then_some(layer);
    let mut wrong: Vec<String> = named(&code)
        .into_iter()
        .filter(|name| Some(*name) != own && !below.contains(name))
        .map(str::to_owned)
        .collect();
    let up =
        |word: &str| code.contains(&format!("{word}::")) || code.contains(&format!("{word} as "));
    if code.contains("super::super") || ((at_root || layer == "hooks") && up("super")) {
        wrong.push("super".into());
    }
    // Other names for the root, and files in other places, would hide what is used.
    for hidden in ["crate as ", "#[path", "include!"] {
        if code.contains(hidden) {
            wrong.push(hidden.trim_end().into());
        }
    }
    wrong
}

/// The files below `folder` with their layer, which is the first part of the path.
fn check(
    folder: &Path,
    layer: Option<&str>,
    depth: usize,
    wrong: &mut Vec<String>,
) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().ok_or("a file has a name")?;
        let layer = layer.unwrap_or(name.to_str().ok_or("names are text")?);
        if path.is_dir() {
            check(&path, Some(layer), depth + 1, wrong)?;
        } else if layer != "main" {
            let at_root = depth == 0 || (depth == 1 && name == "mod");
            let source = fs::read_to_string(&path)?;
            // It would reach the entry points by plain paths.
            let uses = layer == "hooks" && name == "mod" && code(&source).contains("use ");
            wrong.extend(uses.then(|| format!("{}: use", path.display())));
            let found = violations(layer, at_root, &source);
            wrong.extend(
                found
                    .iter()
                    .map(|name| format!("{}: {name}", path.display())),
            );
        }
    }
    Ok(())
}

#[test]
fn programs_use_only_what_is_below_them() -> Result<(), Box<dyn Error>> {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../programs/src");
    let mut wrong = Vec::new();
    check(&programs, None, 0, &mut wrong)?;
    assert!(wrong.is_empty(), "upward or sideways: {wrong:#?}");
    Ok(())
}

#[test]
fn a_use_of_what_is_above_is_found() {
    for (layer, source, expected) in [
        (
            "path",
            "use crate::{\n    ctx::{a::b, exit},\n    state::flows,\n};",
            vec![],
        ),
        (
            "path",
            "use crate::{ctx::skb::Skb, exit, state::flows};",
            vec!["exit"],
        ),
        (
            "path",
            "fn f() { crate::hooks::pod_egress::inner() }",
            vec!["hooks"],
        ),
        ("state", "use crate::path::stack;", vec!["path"]),
        (
            "ctx",
            "//! See [`crate::exit`].\nuse super::direct;",
            vec![],
        ),
        ("hooks", "use super::uplink_ingress;", vec!["super"]),
        ("hooks", "use crate::hooks::uplink_ingress;", vec!["hooks"]),
        ("policy", "", vec!["policy is no layer"]),
    ] {
        assert_eq!(
            violations(layer, false, source),
            expected,
            "{layer}: {source}"
        );
    }
    for (layer, source) in [
        ("event", "use super::exit::end;"),
        ("path", "use super::hooks::pod_egress;"),
        ("state", "use super as root;"),
    ] {
        assert_eq!(
            violations(layer, true, source),
            ["super"],
            "{layer}: {source}"
        );
    }
    let renamed = violations("ctx", false, "use crate as root;");
    assert_eq!(renamed.last().map(String::as_str), Some("crate as"));
}

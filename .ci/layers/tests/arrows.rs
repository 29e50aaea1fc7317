//! The arrows inside the crates that are made of layers.

#![forbid(unsafe_code)]

use std::{io, path::Path};

use veer_layers::Layers;

/// Checks a crate, by its folder in the repository.
fn check(folder: &str, layers: Layers) -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let wrong = layers.check(&root.join(folder).join("src"))?;
    assert!(wrong.is_empty(), "upward or sideways: {wrong:#?}");
    Ok(())
}

#[test]
fn programs_use_only_what_is_below_them() -> io::Result<()> {
    check(
        "bpf/programs",
        Layers {
            rows: &[
                ("ctx", &[]),
                ("state", &["ctx"]),
                ("event", &["state", "ctx"]),
                ("exit", &["event", "state", "ctx"]),
                ("path", &["state", "ctx"]),
                ("hooks", &["path", "exit", "state", "ctx"]),
            ],
            // An entry point uses no other.
            apart: Some("hooks"),
        },
    )
}

#[test]
fn parts_of_the_agent_use_only_what_is_below_them() -> io::Result<()> {
    check(
        "node-agent/agent",
        Layers {
            rows: &[
                ("state", &[]),
                ("runtime", &[]),
                ("report", &["state"]),
                ("watch", &["report", "state"]),
                ("pods", &["report", "runtime", "state"]),
                ("engine", &["pods", "report", "runtime", "state"]),
                ("socket", &["pods", "report", "state"]),
                (
                    "run",
                    &[
                        "socket", "engine", "pods", "watch", "report", "runtime", "state",
                    ],
                ),
            ],
            apart: None,
        },
    )
}

//! The arrows between the modules in the root of a crate: a module uses its own folder
//! and those below. Within a crate the compiler does not check this.
//!
//! What is behind `#[cfg(test)]` is checked too.

#![forbid(unsafe_code)]

use std::{collections::BTreeSet, fs, io, path::Path};

/// The modules in the root of a crate. `main` and `lib` may use all of them.
#[derive(Clone, Copy, Debug)]
pub struct Layers {
    /// From the lowest up: a module, and those of the rows before that it may use.
    pub rows: &'static [(&'static str, &'static [&'static str])],
    /// A module whose files use none of each other.
    pub apart: Option<&'static str>,
}

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

/// Whether `code` goes up by `super`.
fn goes_up(code: &str) -> bool {
    code.contains("super::") || code.contains("super as ")
}

impl Layers {
    /// What is wrong in the crate whose sources are in `folder`, each in a line.
    ///
    /// # Errors
    ///
    /// The sources cannot be read.
    pub fn check(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut wrong = self.upward();
        let mut seen = BTreeSet::new();
        self.walk(folder, None, 0, &mut seen, &mut wrong)?;
        let absent = self.rows.iter().filter(|(name, _)| !seen.contains(*name));
        wrong.extend(absent.map(|(name, _)| format!("{name}: no such module")));
        Ok(wrong)
    }

    /// Arrows of the rows themselves that do not lead down.
    fn upward(&self) -> Vec<String> {
        let mut lower = BTreeSet::new();
        let mut wrong = Vec::new();
        for (name, below) in self.rows {
            let up = below.iter().filter(|used| !lower.contains(*used));
            wrong.extend(up.map(|used| format!("{name}: {used} is not below it")));
            lower.insert(*name);
        }
        wrong
    }

    /// The files below `folder` with their layer, which is the first part of the path.
    fn walk(
        &self,
        folder: &Path,
        layer: Option<&str>,
        depth: usize,
        seen: &mut BTreeSet<String>,
        wrong: &mut Vec<String>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let layer = layer.unwrap_or(&name);
            if path.is_dir() {
                self.walk(&path, Some(layer), depth + 1, seen, wrong)?;
            } else if layer != "main" && layer != "lib" {
                seen.insert(layer.to_owned());
                let at_root = depth == 0 || (depth == 1 && name == "mod");
                let source = fs::read_to_string(&path)?;
                // It would reach the others by plain paths.
                let uses = self.apart == Some(layer) && name == "mod";
                let uses = uses && code(&source).contains("use ");
                wrong.extend(uses.then(|| format!("{}: use", path.display())));
                let found = self.violations(layer, at_root, &source);
                wrong.extend(
                    found
                        .iter()
                        .map(|name| format!("{}: {name}", path.display())),
                );
            }
        }
        Ok(())
    }

    /// What a file of `layer` must not name. `at_root`: its `super` is the root.
    fn violations(&self, layer: &str, at_root: bool, source: &str) -> Vec<String> {
        let code = code(source);
        let below = self.rows.iter().find(|(name, _)| *name == layer);
        let Some((_, below)) = below else {
            return vec![format!("{layer} is no layer")];
        };
        // A file that is apart names no other, and `super` would be the way to one.
        let apart = self.apart == Some(layer);
        let own = (!apart).then_some(layer);
        let mut wrong: Vec<String> = named(&code)
            .into_iter()
            .filter(|name| Some(*name) != own && !below.contains(name))
            .map(str::to_owned)
            .collect();
        // The `super` of a file's tests is the file. They are its last item.
        let (outside_tests, tests) = code
            .split_once("\n#[cfg(test)]\nmod ")
            .unwrap_or((&code, ""));
        let last = tests.find("\n}\n").map_or("", |end| &tests[end + 3..]);
        let declared = tests.lines().next().is_some_and(|line| line.ends_with(';'));
        let others = if declared { tests } else { last };
        let up = [outside_tests, others].into_iter().any(goes_up);
        if code.contains("super::super") || ((at_root || apart) && up) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: Layers = Layers {
        rows: &[
            ("ctx", &[]),
            ("state", &["ctx"]),
            ("event", &["state", "ctx"]),
            ("exit", &["event", "state", "ctx"]),
            ("path", &["state", "ctx"]),
            ("hooks", &["path", "exit", "state", "ctx"]),
        ],
        apart: Some("hooks"),
    };

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
            (
                "ctx",
                "#[cfg(test)]\nmod tests {\n    use crate::path::stack;\n}",
                vec!["path"],
            ),
        ] {
            let found = LAYERS.violations(layer, false, source);
            assert_eq!(found, expected, "{layer}: {source}");
        }
        let renamed = LAYERS.violations("ctx", false, "use crate as root;");
        assert_eq!(renamed.last().map(String::as_str), Some("crate as"));
    }

    #[test]
    fn the_way_up_from_a_module_of_the_root_is_found_and_that_of_its_tests_is_none() {
        for (layer, source, expected) in [
            ("event", "use super::exit::end;", vec!["super"]),
            ("path", "use super::hooks::pod_egress;", vec!["super"]),
            ("state", "use super as root;", vec!["super"]),
            (
                "state",
                "\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\n",
                vec![],
            ),
            (
                "state",
                "#[cfg(test)]\nmod tests {\n    use super::super::path;\n}",
                vec!["super"],
            ),
            (
                "state",
                "\n#[cfg(test)]\nmod tests;\nuse super::path;\n",
                vec!["super"],
            ),
            (
                "state",
                "\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\nuse super::path;\n",
                vec!["super"],
            ),
        ] {
            let found = LAYERS.violations(layer, true, source);
            assert_eq!(found, expected, "{layer}: {source}");
        }
    }

    #[test]
    fn a_circle_in_the_rows_is_found() {
        assert!(LAYERS.upward().is_empty());
        let circle = Layers {
            rows: &[("report", &["watch"]), ("watch", &["report"])],
            apart: None,
        };
        assert_eq!(circle.upward(), ["report: watch is not below it"]);
    }
}

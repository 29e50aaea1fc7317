//! Deaths at chosen system calls, by strace: which calls of an agent change
//! something outside of it, and an agent that is killed when it is about to make
//! one of them. The call itself is not made, so a death at each of them in turn
//! is a death in each state that the agent can leave behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use veer_e2e_cluster::{Machine, await_condition};

use crate::{agents, lab::Lab};

/// Calls by which an agent changes maps, devices, rules and files.
const CALLS: &str =
    "trace=bpf,sendto,sendmsg,rename,renameat,renameat2,openat,unlink,unlinkat,mkdir";
/// What the line of a call that changes something holds.
const CHANGES: [&str; 20] = [
    "BPF_MAP_CREATE",
    "BPF_MAP_UPDATE_ELEM",
    "BPF_MAP_DELETE_ELEM",
    "BPF_OBJ_PIN",
    "BPF_PROG_LOAD",
    "BPF_LINK_CREATE",
    "BPF_LINK_UPDATE",
    "BPF_LINK_DETACH",
    "RTM_NEW",
    "RTM_DEL",
    "RTM_SET",
    "NFT_MSG_NEW",
    "NFT_MSG_DEL",
    "NFNL_MSG_BATCH_BEGIN",
    "O_CREAT",
    "O_WRONLY",
    "rename",
    "unlink",
    "mkdir",
    "O_TRUNC",
];
/// Where the wrapper is, on a node's disk and in the agent's container.
const WRAPPER: &str = "opt/cni/bin/wrap";
const WRAPPER_INSIDE: &str = "/host/opt/cni/bin/wrap";
/// Where a trace is written, on a node and in the agent's container.
const TRACE: &str = "/run/veer/trace";
/// How long strace may take to have attached to all threads.
const ATTACHED: Duration = Duration::from_secs(10);

/// A death: at the `number`th call of that name that a thread makes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Death {
    /// The system call.
    pub call: String,
    /// From 1.
    pub number: usize,
}

/// The steps in what strace printed of all threads: the calls that change
/// something, each counted as strace counts, by thread and name.
pub fn steps(trace: &str) -> Vec<Death> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.trim_start().split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        let Some((call, _)) = rest.split_once('(') else {
            continue;
        };
        // `<... bpf resumed>` is the end of a call that began before.
        if rest.starts_with('<') || call.contains(' ') {
            continue;
        }
        let count = counts.entry((thread, call)).or_default();
        *count += 1;
        if CHANGES.iter().any(|change| rest.contains(change)) {
            found.insert(Death {
                call: call.to_owned(),
                number: *count,
            });
        }
    }
    found.into_iter().collect()
}

/// A strace that watches a running agent.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    trace: Option<PathBuf>,
}

impl Watch {
    /// Attaches to the agent of a node. With a step the agent dies there;
    /// without one all calls are noted.
    pub fn attach(lab: &Lab, node: &str, step: Option<&Death>) -> Result<Self> {
        let machine = lab.node(node)?;
        let pid = agents::pid(lab, node)?.with_context(|| format!("no agent on {node}"))?;
        let mut command = machine.command("strace")?;
        command.args(["-f", "-p", &pid.to_string(), "-e", CALLS]);
        let trace = if let Some(step) = step {
            command.args(["-e", &injection(step), "-o", "/dev/null"]);
            None
        } else {
            command.args(["-o", TRACE]);
            Some(PathBuf::from(TRACE))
        };
        // Nobody reads what it says of threads that come and go.
        let child = command
            .arg("-q")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start strace (package strace)")?;
        await_condition("strace has all threads", ATTACHED, || {
            traced(&machine, pid).map_err(|e| format!("{e:#}"))
        })?;
        Ok(Self { child, trace })
    }

    /// Whether the agent has died.
    pub fn has_killed(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Leaves the agent, if it lives; returns what was noted.
    pub fn end(mut self, machine: &Machine) -> Result<String> {
        if self.child.try_wait()?.is_none() {
            // The child is nsenter; strace itself is the node's process.
            machine.exec_any(&["pkill", "-INT", "-x", "strace"])?;
        }
        self.child.wait().context("wait for strace")?;
        let Some(trace) = self.trace.take() else {
            return Ok(String::new());
        };
        let path = trace.to_string_lossy();
        let text = machine.exec(&["cat", &path])?.stdout;
        machine.exec(&["rm", &path])?;
        Ok(text)
    }
}

/// Whether a tracer has every thread of a process.
fn traced(machine: &Machine, pid: agents::Pid) -> Result<Option<()>> {
    let script = format!("grep -h TracerPid /proc/{pid}/task/*/status");
    let text = machine.exec_any(&["sh", "-c", &script])?.stdout;
    if text.lines().all(|l| !l.ends_with("\t0")) {
        return Ok(Some(()));
    }
    bail!("{text}")
}

fn injection(step: &Death) -> String {
    format!("inject={}:signal=KILL:when={}", step.call, step.number)
}

/// Has every agent started by way of a script that can start it under strace.
/// Nothing of strace is in the image: the node's folder of plugins, which the
/// agent's container sees, lends it one with the libraries it needs.
pub fn wrap(lab: &Lab) -> Result<()> {
    for name in lab.cluster.node_names() {
        let folder = lab.node(&name)?.disk().join(WRAPPER);
        fs::create_dir_all(&folder)?;
        for program in ["/usr/bin/strace", "/bin/dash"] {
            lend(Path::new(program), &folder)?;
        }
        let script = format!(
            "options=\nread -r options <{WRAPPER_INSIDE}/inject\n\
             if [ -n \"$options\" ]; then\n\
             : >{WRAPPER_INSIDE}/inject\n\
             exec {WRAPPER_INSIDE}/ld.so --library-path {WRAPPER_INSIDE} {WRAPPER_INSIDE}/strace \
             -f -q $options /veer-agent \"$@\"\nfi\nexec /veer-agent \"$@\"\n"
        );
        fs::write(folder.join("run"), script)?;
        fs::write(folder.join("inject"), "")?;
    }
    set_command(
        lab,
        &format!(
            r#"["{WRAPPER_INSIDE}/ld.so","--library-path","{WRAPPER_INSIDE}","{WRAPPER_INSIDE}/dash","{WRAPPER_INSIDE}/run"]"#
        ),
    )
}

/// Ends what [`wrap`] began.
pub fn unwrap(lab: &Lab) -> Result<()> {
    set_command(lab, r#"["/veer-agent"]"#)?;
    for name in lab.cluster.node_names() {
        let folder = lab.node(&name)?.disk().join(WRAPPER);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    Ok(())
}

fn set_command(lab: &Lab, command: &str) -> Result<()> {
    let patch = format!(
        r#"[{{"op":"replace","path":"/spec/template/spec/containers/0/command","value":{command}}}]"#
    );
    lab.kubectl().run(&[
        "-n",
        crate::lab::NAMESPACE,
        "patch",
        crate::lab::AGENT,
        "--type=json",
        "-p",
        &patch,
    ])?;
    let deadline = Duration::from_mins(3);
    lab.cluster
        .await_rollout(crate::lab::NAMESPACE, crate::lab::AGENT, deadline)?;
    Ok(())
}

/// Copies a program and what it is linked with; the loader is called `ld.so`.
fn lend(program: &Path, to: &Path) -> Result<()> {
    let copy = |from: &Path, name: &str| {
        fs::copy(from, to.join(name))
            .map(|_| ())
            .with_context(|| format!("copy {}", from.display()))
    };
    let name = program
        .file_name()
        .context("a program's name")?
        .to_string_lossy();
    copy(program, &name)?;
    let out = Command::new("ldd")
        .arg(program)
        .output()
        .context("start ldd")?;
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let word = line.split_whitespace().find(|w| w.starts_with('/'));
        let Some(path) = word.map(Path::new) else {
            continue;
        };
        let name = path
            .file_name()
            .context("a library's name")?
            .to_string_lossy();
        let name = if name.starts_with("ld-linux") {
            "ld.so".into()
        } else {
            name
        };
        copy(path, &name)?;
    }
    Ok(())
}

/// The next agent that starts on a node dies at a step, or, without one, has
/// its calls noted.
pub fn arm(lab: &Lab, node: &str, step: Option<&Death>) -> Result<()> {
    let options = step.map_or_else(
        || format!("-e {CALLS} -o {TRACE}\n"),
        |step| format!("-e {CALLS} -e {} -o /dev/null\n", injection(step)),
    );
    let path = lab.node(node)?.disk().join(WRAPPER).join("inject");
    fs::write(&path, options).with_context(|| format!("write {}", path.display()))
}

/// Whether the armed agent has begun.
pub fn has_begun(lab: &Lab, node: &str) -> Result<bool> {
    let path = lab.node(node)?.disk().join(WRAPPER).join("inject");
    Ok(fs::read_to_string(path)?.is_empty())
}

/// Whether the agent that runs on a node was started under strace.
pub fn is_traced(lab: &Lab, node: &str) -> Result<bool> {
    let out = lab.node(node)?.exec_any(&["pgrep", "-x", "ld.so"])?;
    Ok(out.code == 0)
}

/// Takes what the armed agent's calls were.
pub fn take_trace(machine: &Machine) -> Result<String> {
    let text = machine.exec(&["cat", TRACE])?.stdout;
    machine.exec(&["rm", TRACE])?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_thread_and_those_that_change_something_are_steps() {
        let trace = "10 bpf(BPF_MAP_LOOKUP_ELEM, {…}) = 0\n\
            11 bpf(BPF_MAP_UPDATE_ELEM, {…} <unfinished ...>\n\
            10 bpf(BPF_OBJ_PIN, {…}) = 0\n\
            11 <... bpf resumed>) = 0\n\
            10 sendto(5, [{nlmsg_type=RTM_GETROUTE}], 20, 0, NULL, 0) = 20\n\
            10 sendto(5, [{nlmsg_type=RTM_NEWROUTE}], 20, 0, NULL, 0) = 20\n\
            10 +++ killed by SIGKILL +++\n";
        let step = |call: &str, number| Death {
            call: call.to_owned(),
            number,
        };
        assert_eq!(
            steps(trace),
            [step("bpf", 1), step("bpf", 2), step("sendto", 2)]
        );
    }
}

//! Builds `bpf/programs` for `bpfel-unknown-none`.
//!
//! Two toolchains can: a distribution's compiler with a prebuilt core for BPF
//! (Debian: rustc-web, cargo-web, libstd-rust-web-dev-bpf), or a rustup nightly
//! with rust-src. What is there is taken, in this order. Either needs
//! bpf-linker. Nothing of the outer build's environment may reach the inner
//! cargo, which has another compiler, target and target directory.

use anyhow::{Context as _, Result, bail};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const PROGRAMS: &str = "veer-bpf-programs";

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed=VEER_BPF_SKIP");
    println!("cargo::rerun-if-env-changed=VEER_BPF_LINKER");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let object = out.join("veer.bpf.o");
    if env::var_os("VEER_BPF_SKIP").is_some_and(|v| v == "1") {
        return fs::write(&object, []).with_context(|| format!("write {}", object.display()));
    }
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets it")?);
    let bpf = here.parent().context("this crate lies in bpf/")?;
    for part in ["common", "net", "programs"] {
        for file in ["src", "Cargo.toml"] {
            println!(
                "cargo::rerun-if-changed={}",
                bpf.join(part).join(file).display()
            );
        }
    }
    let built = build(&bpf.join("programs"), &out.join("target"))?;
    fs::copy(&built, &object)
        .with_context(|| format!("copy {} to {}", built.display(), object.display()))?;
    Ok(())
}

/// A compiler that can build for BPF, and how.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    build_std: bool,
}

fn build(programs: &Path, target_dir: &Path) -> Result<PathBuf> {
    let toolchain = toolchain()?;
    let flags = [
        format!("-Clinker={}", linker()?.display()),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        "-Cpanic=abort".into(),
    ];
    let mut command = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = matches!(&*text, "CARGO_HOME" | "CARGO_NET_OFFLINE");
        if !kept && (text.starts_with("CARGO") || text.starts_with("RUST")) {
            command.env_remove(&name);
        }
    }
    command
        .args(["build", "--locked", "--release", "--target", TARGET])
        .args(["--package", PROGRAMS, "--manifest-path"])
        .arg(programs.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // aya-ebpf turns on one unstable feature for this target.
        .env("RUSTC_BOOTSTRAP", "1")
        // The workspace's profile strips what the BTF is made from.
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env_remove("MAKEFLAGS")
        .current_dir(programs);
    if env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some() {
        command.args(["--features", "veer-bpf-common/next-layout"]);
    }
    if toolchain.build_std {
        command.args(["-Z", "build-std=core"]);
    }
    let status = command
        .status()
        .with_context(|| format!("run {}", toolchain.cargo.display()))?;
    if !status.success() {
        bail!("the BPF programs did not build ({status}); the compiler's words are above");
    }
    Ok(target_dir.join(TARGET).join("release").join(PROGRAMS))
}

fn toolchain() -> Result<Toolchain> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let cargo = PathBuf::from("/usr/bin/cargo");
    if cargo.is_file() {
        let libraries = answer(&rustc, &["--print", "target-libdir", "--target", TARGET]);
        if libraries.is_some_and(|dir| Path::new(&dir).is_dir()) {
            return Ok(Toolchain {
                cargo,
                rustc,
                build_std: false,
            });
        }
    }
    if let Some(rustc) = answer(
        Path::new("rustup"),
        &["which", "--toolchain", "nightly", "rustc"],
    ) {
        let rustc = PathBuf::from(rustc);
        let sources = answer(&rustc, &["--print", "sysroot"])
            .map(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core"));
        if sources.is_some_and(|dir| dir.is_dir()) {
            return Ok(Toolchain {
                cargo: rustc.with_file_name("cargo"),
                rustc,
                build_std: true,
            });
        }
    }
    bail!(
        "no compiler here can build for {TARGET}: install Debian's rustc-web, cargo-web and \
         libstd-rust-web-dev-bpf (`make setup` does), or run `rustup toolchain install nightly \
         --component rust-src`"
    )
}

/// The first line that a command prints; `None` where it fails or is not there.
fn answer(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

fn linker() -> Result<PathBuf> {
    if let Some(path) = env::var_os("VEER_BPF_LINKER") {
        return Ok(PathBuf::from(path));
    }
    let mut places: Vec<PathBuf> =
        env::var_os("PATH").map_or_else(Vec::new, |path| env::split_paths(&path).collect());
    if let Some(home) = env::var_os("HOME") {
        let home = PathBuf::from(home);
        places.push(home.join(".cache/veer/bin"));
        places.push(home.join(".cargo/bin"));
    }
    places
        .into_iter()
        .map(|place| place.join("bpf-linker"))
        .find(|path| path.is_file())
        .context(
            "bpf-linker is neither in PATH nor in ~/.cache/veer/bin nor in ~/.cargo/bin: run \
             `make setup`, or name it in VEER_BPF_LINKER",
        )
}

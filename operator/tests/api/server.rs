//! A kube-apiserver with its etcd, gone with the value that holds them.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tempfile::TempDir;

/// How long anything awaited may take: long, because machines are shared.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Polls until there is a result, and fails with the last thing seen.
pub(crate) async fn eventually<T>(
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => {
                panic!(
                    "{what}: not within {} s; last seen: {seen}",
                    PATIENCE.as_secs()
                )
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A process that is killed when this is dropped, or when the test's thread is.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts one; what it prints goes to `log`.
    pub(crate) fn start(command: &Command, log: &Path) -> Self {
        let out = fs::File::create(log).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))))
            // A trace would push what it says out of the end of its log.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// The end of what it printed.
    pub(crate) fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(3000);
        text.get(from..).unwrap_or(&text).to_owned()
    }

    /// Sends it a signal, by its name without SIG.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(mut self) {
        self.signal("TERM");
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.log.display(), self.said());
        }
    }
}

/// How many servers run at once, each of some 400 MB.
static RUNNING: Mutex<u32> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();
const AT_ONCE: u32 = 2;

struct Slot;

impl Slot {
    fn take() -> Self {
        let mut running = RUNNING.lock().unwrap();
        while *running >= AT_ONCE {
            running = ENDED.wait(running).unwrap();
        }
        *running += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap() -= 1;
        ENDED.notify_one();
    }
}

/// A running API server. Fields end in order: processes, files, slot.
pub(crate) struct Server {
    pub(crate) client: Client,
    apiserver: Option<Process>,
    etcd: Option<Process>,
    commands: [Command; 2],
    pub(crate) dir: TempDir,
    _slot: Slot,
}

/// Where `make setup` puts programs.
pub(crate) fn programs_folder() -> PathBuf {
    let cache = std::env::var_os("VEER_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/veer"),
        PathBuf::from,
    );
    cache.join("bin")
}

fn programs(dir: &Path) -> PathBuf {
    let program = programs_folder().join("kubernetes");
    assert!(
        program.is_file(),
        "{} is missing: run make setup",
        program.display()
    );
    for name in ["etcd", "kube-apiserver", "kubectl"] {
        symlink(&program, dir.join(name)).unwrap();
    }
    dir.to_owned()
}

/// A port nobody listens on, another one at every call. It is below those the
/// kernel gives to clients: such a port could be a connection's before the
/// server listens on it, or while it is down.
pub(crate) fn free_port() -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() * 64;
    loop {
        let n = first.wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + n % 20_000).unwrap();
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            return port;
        }
    }
}

impl Server {
    /// Starts one without veer's CRDs.
    pub(crate) async fn bare() -> Self {
        let slot = Slot::take();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let bin = programs(dir.path());
        let (store, peer, port) = (free_port(), free_port(), free_port());
        let mut etcd = Command::new(bin.join("etcd"));
        etcd.args([
            format!("--data-dir={}", at("etcd-data")),
            "--unsafe-no-fsync".into(),
            "--log-level=error".into(),
            format!("--listen-client-urls=http://127.0.0.1:{store}"),
            format!("--advertise-client-urls=http://127.0.0.1:{store}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        ]);
        let made = Command::new("openssl")
            .args(["genrsa", "-out", &at("sa.key"), "2048"])
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        fs::write(
            dir.path().join("tokens"),
            "admin,admin,1,\"system:masters\"\n",
        )
        .unwrap();
        let mut apiserver = Command::new(bin.join("kube-apiserver"));
        apiserver.args([
            format!("--etcd-servers=http://127.0.0.1:{store}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", at("certs")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", at("sa.key")),
            format!("--service-account-signing-key-file={}", at("sa.key")),
            "--authorization-mode=RBAC".into(),
            format!("--token-auth-file={}", at("tokens")),
            "--profiling=false".into(),
        ]);
        let kubeconfig = kubeconfig(port, "admin");
        fs::write(dir.path().join("kubeconfig"), &kubeconfig).unwrap();
        let mut server = Self {
            client: client(&kubeconfig).await,
            apiserver: None,
            etcd: None,
            commands: [etcd, apiserver],
            dir,
            _slot: slot,
        };
        server.up().await;
        server
    }

    /// Starts both processes.
    async fn up(&mut self) {
        let at = |name: &str| self.dir.path().join(name);
        self.etcd = Some(Process::start(&self.commands[0], &at("etcd.log")));
        let mut apiserver = Process::start(&self.commands[1], &at("apiserver.log"));
        eventually("the API server is ready", async || {
            if let Ok(Some(status)) = apiserver.child.try_wait() {
                // The port may not be free again yet.
                let said = apiserver.said();
                apiserver = Process::start(&self.commands[1], &at("apiserver.log"));
                return Err(format!("it ended with {status}: {said}"));
            }
            let ask = http::Request::get("/readyz").body(Vec::new()).unwrap();
            let answer = self.client.request_text(ask).await;
            answer.map_err(|e| format!("{e}; {}", apiserver.said()))
        })
        .await;
        self.apiserver = Some(apiserver);
    }

    fn down(&mut self) {
        self.apiserver = None;
        self.etcd = None;
    }

    fn copy(&self, from: &str, to: &str) {
        let (from, to) = (self.dir.path().join(from), self.dir.path().join(to));
        let copied = Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status()
            .unwrap();
        assert!(copied.success());
    }

    /// Takes a backup of the store.
    pub(crate) async fn backup(&mut self) {
        self.down();
        self.copy("etcd-data", "etcd-backup");
        self.up().await;
    }

    /// Goes back to the backup.
    pub(crate) async fn restore(&mut self) {
        self.down();
        fs::remove_dir_all(self.dir.path().join("etcd-data")).unwrap();
        self.copy("etcd-backup", "etcd-data");
        self.up().await;
    }

    /// Starts one with veer's CRDs, applied as a user would.
    pub(crate) async fn start() -> Self {
        let server = Self::bare().await;
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests");
        let out = server.kubectl(&["apply", "-f", manifests.to_str().unwrap()]);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let out = server.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "--all",
        ]);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        server
    }

    /// The kubeconfig of an administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// A client that shows this token instead of the administrator's.
    pub(crate) async fn with_token(&self, token: &str) -> Client {
        let text = fs::read_to_string(self.kubeconfig()).unwrap();
        client(&text.replace("token: admin", &format!("token: {token}"))).await
    }

    /// Runs kubectl.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Output {
        Command::new(self.dir.path().join("kubectl"))
            .env("KUBECONFIG", self.kubeconfig())
            .args([
                "--cache-dir",
                self.dir.path().join("kube-cache").to_str().unwrap(),
            ])
            .args(args)
            .output()
            .unwrap()
    }

    /// Applies YAML with kubectl; what it said if it was refused.
    pub(crate) fn apply(&self, yaml: &str) -> Result<(), String> {
        let file = self.dir.path().join(format!("apply-{}.yaml", free_port()));
        fs::write(&file, yaml).unwrap();
        let out = self.kubectl(&["apply", "-f", file.to_str().unwrap()]);
        if out.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

fn kubeconfig(port: u16, token: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}]
users:
- name: u
  user:
    token: {token}
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"
    )
}

async fn client(kubeconfig: &str) -> Client {
    let parsed = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

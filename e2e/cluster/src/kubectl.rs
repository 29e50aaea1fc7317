//! kubectl against one cluster, as its administrator.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

use crate::{
    error::{Error, Result},
    paths,
    run::{self, Output, run, run_with_input},
};

/// kubectl with the cluster's administrator kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubectl {
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(crate) fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig }
    }

    /// The command, for a caller that wants its pipes.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(paths::programs().join("kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// It ends with another status than 0.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        run(&mut self.command(args))
    }

    /// Runs kubectl and returns what it printed, failed or not.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn any(&self, args: &[&str]) -> Result<Output> {
        run::run_any(&mut self.command(args))
    }

    /// Runs kubectl with `-o json` and parses what it prints.
    ///
    /// # Errors
    /// As [`Kubectl::run`], or the output is not JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut args = args.to_vec();
        args.extend(["-o", "json"]);
        let out = self.run(&args)?;
        serde_json::from_str(&out.stdout).map_err(|source| Error::Json {
            what: format!("kubectl {}", args.join(" ")),
            source,
        })
    }

    /// `kubectl apply` of YAML text.
    ///
    /// # Errors
    /// The API server refuses it; the text has its reason.
    pub fn apply(&self, yaml: &str) -> Result<Output> {
        run_with_input(&mut self.command(&["apply", "-f", "-"]), yaml.as_bytes())
    }

    /// `kubectl delete` of everything in YAML text; what is gone is fine.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn delete(&self, yaml: &str) -> Result<Output> {
        let args = ["delete", "--ignore-not-found", "-f", "-"];
        run_with_input(&mut self.command(&args), yaml.as_bytes())
    }
}

//! veer-load: serves and waits for orders until it is killed.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use veer_e2e_load::Engine;

fn main() -> ExitCode {
    match Engine::new().and_then(Engine::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("veer-load: {error}");
            ExitCode::FAILURE
        }
    }
}

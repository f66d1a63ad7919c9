//! The pgsquire program.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    // Patroni waits for its callbacks: they go before everything that takes time to set up.
    match pgsquire::cli::callback::Invocation::find(&args) {
        Some(callback) => callback.run(),
        None => pgsquire::cli::main(args),
    }
}

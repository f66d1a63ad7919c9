//! The pgsquire program.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    // Patroni waits for its children: they go before everything that takes time to set up.
    match pgsquire::cli::patroni_child::Child::find(&args) {
        Some(child) => child.run(),
        None => pgsquire::cli::main(args),
    }
}

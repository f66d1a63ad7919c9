//! The pgsquire program.
fn main() {}

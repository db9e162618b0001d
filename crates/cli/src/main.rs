//! The `sparamx` command.
fn main() {}

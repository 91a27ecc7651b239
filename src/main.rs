//! The `cutline` program.

fn main() {}

//! The `cutline` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    cutline::cli::main()
}

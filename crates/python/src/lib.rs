//! `cutline._native`: what the Python module does not do in Python. The classes for users are in
//! `python/cutline`; they call these, and nobody else does.
//!
//! - `engine`: a captioner with its threads, parameters, captions in work;
//! - `input`: images from Python to the bytes of a file;
//! - `process`: errors, interrupts, forks, and the command line.

mod engine;
mod input;
mod process;

#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::engine::{Engine, Parameters, Pending};
    #[pymodule_export]
    use super::process::main;

    /// The version of cutline.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}

//! From many callers to one model: a pure queue, the one thread that owns the engine, and the
//! handle that async code holds.

mod handle;
mod queue;
#[cfg(test)]
mod tests;
mod worker;

pub use handle::{Handle, JobEvent, Status, Submission};

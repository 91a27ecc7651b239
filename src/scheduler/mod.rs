//! From many callers to one model.
//!
//! - `queue`: who is next; a plain data structure;
//! - `throughput`: how fast it goes;
//! - `job`: one image on its way through queue and model, and what its caller hears;
//! - `worker`: the one thread that owns the engine; `vision`: who joins the batch, and how its image
//!   is encoded; `faults`: what is done when the engine fails;
//! - `handle`: what async code holds;
//! - `trace`: what a trace of a request tells of its job.

mod handle;
mod job;
mod queue;
mod recovery;
mod shared;
#[cfg(test)]
mod tests;
mod throughput;
mod trace;
mod vision;
mod worker;

pub use handle::{Handle, QueueSlot, SchedulerOptions, VisionOrder};
pub use job::{JobEvent, JobRequest, Submission};
pub use queue::{MAX_OVERTAKERS, Priority};
pub use shared::SchedulerStatus;

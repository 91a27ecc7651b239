//! Continuous batching: jobs of many callers share the decode steps of one model.
//!
//! One thread owns the engine. Each turn of its loop drops jobs whose caller has left, admits waiting
//! jobs that fit into the batch, and runs one decode step.
//!
//! - `handle`: the async side: reserve queue slots, submit jobs, read the status;
//! - `queue`: which job is next; a plain data structure;
//! - `job`: one image on its way through queue and model, its events and its trace;
//! - `worker`: the loop of the model thread;
//! - `vision`: admission to the batch and image encoding;
//! - `recovery`: what happens when the engine fails;
//! - `shared`: the state that handles and worker share;
//! - `throughput`: images per second, and estimates of waiting times.

mod handle;
mod job;
mod queue;
mod recovery;
mod shared;
#[cfg(test)]
mod tests;
mod throughput;
mod vision;
mod worker;

pub use handle::{Handle, QueueSlot, SchedulerOptions, VisionOrder};
pub use job::{JobEvent, JobRequest, Submission};
pub use queue::{MAX_OVERTAKERS, Priority};
pub use shared::SchedulerStatus;

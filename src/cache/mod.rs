//! What was computed before, and what is being computed now.
//!
//! - `key`: which answers are the same answer: a [`Key`] over everything that it depends on;
//! - `store`: a bounded memory of values by their keys;
//! - `flight`: work in flight that several callers wait for.
//!
//! None of them knows what a caption is.

mod key;
mod single_flight;
mod store;

pub use key::{Identity, Key};
pub use single_flight::{InFlight, Leader, SingleFlight};
pub use store::{Store, Weigh};

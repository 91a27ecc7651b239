//! Values that were computed before, and computations that are in flight.
//!
//! - `key`: a [`Key`] identifies a value by everything that the value depends on;
//! - `store`: a [`Store`] keeps values within a number of bytes and a time to live;
//! - `single_flight`: callers that want the same value share one computation;
//! - `shared`: values that several servers share, with the feature `redis`.
//!
//! The cache is generic: it does not know what a caption is.

mod key;
mod shared;
mod single_flight;
mod store;
mod sync;

pub use key::{Key, KeyNamespace};
#[cfg(feature = "redis")]
pub use shared::Shared;
pub use shared::{CacheScope, SharedSettings};
pub use single_flight::{InFlight, Leader, SingleFlight};
pub use store::{Store, Weigh};

//! Which of several models answers a request, and what happens when one is ill.
//!
//! - `config` reads a file of backends and routes ([`Config`]);
//! - `router` keeps the state of all backends and takes a request from one to the next ([`Router`]);
//! - `state` is what is known of one of them;
//! - `breaker` keeps requests away from a backend that fails ([`Breaker`]);
//! - `retry` says which failures are worth another attempt, and when ([`Failure`], [`Retry`]);
//! - `cost` is the price of an answer ([`Price`]).
//!
//! Nothing here does input or output. Time is a [`Moment`] that the caller passes in, and so are random
//! numbers from 0 to 1.
//!
//! ```
//! use std::time::Duration;
//!
//! use cutline_route::{Config, Failure, Needs, Outcome, Router, Step};
//!
//! let config = Config::parse(
//!     r#"
//!     [[backend]]
//!     name = "small"
//!     kind = "local"
//!
//!     [[backend]]
//!     name = "box"
//!     kind = "ollama"
//!     base_url = "http://127.0.0.1:11434"
//!     model = "llava"
//!
//!     [[route]]
//!     name = "best"
//!     backends = [["box"], ["small"]]
//!     "#,
//! )?;
//! let mut router = Router::new(config);
//! let mut half = || 0.5;
//! let now = Duration::ZERO;
//! let mut journey = router.begin(0, Needs::default(), now, Duration::from_secs(60));
//! let Step::Try(attempt) = router.next(&mut journey, now, &mut half) else { unreachable!() };
//! assert_eq!(router.backend(attempt.backend).name, "box");
//! router.report(&mut journey, &attempt, Outcome::Failed(Failure::Connect), now, &mut half);
//! let Step::Try(attempt) = router.next(&mut journey, now, &mut half) else { unreachable!() };
//! assert_eq!(router.backend(attempt.backend).name, "small");
//! # Ok::<(), cutline_error::Error>(())
//! ```

mod breaker;
mod config;
mod cost;
mod pick;
mod retry;
mod router;
mod state;

use std::time::Duration;

pub use breaker::{Breaker, BreakerState, Change};
pub use config::{
    Ability, Backend, Config, Kind, MAX_BACKENDS, MAX_BYTES, MAX_ROUTES, Member, Privacy, Route,
};
pub use cost::{Price, Usage};
pub use retry::{Failure, Retry, Verdict};
pub use router::{Attempt, End, Journey, Needs, Outcome, Reported, Router, Step};
pub use state::{BackendStatus, Tally};

/// A point in time: how long after a start of the caller's choice.
pub type Moment = Duration;

/// Gives random numbers from 0 up to 1.
pub type Random<'a> = &'a mut dyn FnMut() -> f64;

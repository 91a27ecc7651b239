//! Values that several servers share, in Redis: a second cache behind the one in memory, with the
//! feature `redis`.
//!
//! The server never depends on it. Every call has a timeout, every error is a miss, values are written in
//! the background, and after a few failures a breaker stops asking for a while.
//!
//! Names of values are keyed hashes, and values carry a MAC. Who can read the cache but lacks the secret
//! cannot test whether a photo that he knows was captioned, and who can write to it cannot plant a caption.
//! A value is not encrypted: the connection (`rediss://`) and the rights of the Redis user protect it.

#[cfg(any(feature = "redis", test))]
mod breaker;
#[cfg(feature = "redis")]
mod client;
#[cfg(any(feature = "redis", test))]
mod seal;

use std::fmt;
use std::time::Duration;

#[cfg(feature = "redis")]
pub use self::client::Shared;

/// Which servers share answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheScope {
    /// Those whose answers are equal bit for bit: the same kernels and the same kind of device.
    Exact,
    /// All with the same model and precision. Other kernels may choose another word now and then.
    Model,
}

/// How to reach the shared cache.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSettings {
    /// `redis://` or `rediss://`, with user and password.
    pub address: String,
    /// What names and values are authenticated with; the same on all servers.
    pub secret: String,
    /// How long one call may take.
    pub timeout: Duration,
    /// How long a value stays, give or take a tenth.
    pub time_to_live: Duration,
    /// Which servers share answers.
    pub scope: CacheScope,
}

impl fmt::Debug for SharedSettings {
    /// Without the password and the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSettings")
            .field("timeout", &self.timeout)
            .field("time_to_live", &self.time_to_live)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

//! Limits the rate of requests per client.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::Instant;

use crate::config::RateLimit;
use cutline_error::{Error, ErrorKind, Result};

/// Maximum number of tracked clients; beyond it the least recently active one is forgotten. This
/// limits memory use to a few megabytes, even if somebody forges addresses.
const MAX_CLIENTS: u64 = 16_384;

/// The sender of a request, for counting.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ClientId {
    /// The holder of the key with this index.
    Key(usize),
    /// The holder of the key with this number in the library.
    Account(i64),
    /// Everybody at this address; `None` without a socket.
    Address(Option<IpAddr>),
}

/// Allows each client a number of requests per minute, evenly spread except for a burst.
pub(super) struct Limiter {
    limiter: RateLimiter<ClientId, Clients, RuntimeClock, NoOpMiddleware<Nanos>>,
    per_minute: NonZeroU32,
}

impl Limiter {
    pub(super) fn new(limit: RateLimit) -> Self {
        Self::remembering(limit, MAX_CLIENTS)
    }

    fn remembering(limit: RateLimit, clients: u64) -> Self {
        let quota = Quota::per_minute(limit.per_minute).allow_burst(limit.burst);
        // After this time without requests, a client is like a new one.
        let forgotten = quota.replenish_interval().saturating_mul(limit.burst.get());
        let clients = Cache::builder()
            .max_capacity(clients)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(forgotten + Duration::from_secs(1))
            .build();
        let clock = RuntimeClock(Instant::now());
        let limiter = RateLimiter::new(quota, Clients(clients), clock);
        Self { limiter, per_minute: limit.per_minute }
    }

    /// Counts a request of `client`.
    ///
    /// # Errors
    /// [`RateLimited`](ErrorKind::RateLimited), with the time until the next request is allowed.
    /// Refused requests do not count.
    pub(super) fn take(&self, client: &ClientId) -> Result<()> {
        self.limiter.check_key(client).map_err(|refusal| {
            let wait = refusal.wait_time_from(self.limiter.clock().now());
            let who = match client {
                ClientId::Key(_) | ClientId::Account(_) => "this API key",
                ClientId::Address(_) => "your address",
            };
            let detail = format!(
                "{who} may send {} requests per minute; wait as long as Retry-After says",
                self.per_minute
            );
            Error::new(ErrorKind::RateLimited, detail).with_retry_after(wait)
        })
    }
}

/// The clients' states, a bounded number of them.
struct Clients(Cache<ClientId, Arc<InMemoryState>>);

impl StateStore for Clients {
    type Key = ClientId;

    fn measure_and_replace<T, F, E>(&self, client: &ClientId, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let state = self.0.get_with_by_ref(client, Arc::default);
        state.measure_and_replace(&NotKeyed::NonKey, decide)
    }
}

/// The time since its start by the runtime's clock, which tests can pause.
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn limiter(per_minute: u32, burst: u32, clients: u64) -> Limiter {
        let number = |number| NonZeroU32::new(number).unwrap();
        let limit = RateLimit { per_minute: number(per_minute), burst: number(burst) };
        Limiter::remembering(limit, clients)
    }

    fn refused(limiter: &Limiter, client: &ClientId) -> Duration {
        let error = limiter.take(client).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        error.retry_after().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_then_the_rate() {
        let limiter = limiter(6, 3, 100);
        let client = ClientId::Key(0);
        for _ in 0..3 {
            limiter.take(&client).unwrap();
        }
        assert_eq!(refused(&limiter, &client), Duration::from_secs(10));
        advance(Duration::from_secs(4)).await;
        assert_eq!(refused(&limiter, &client), Duration::from_secs(6));
        // Refused requests did not extend the wait.
        advance(Duration::from_secs(6)).await;
        limiter.take(&client).unwrap();
        assert_eq!(refused(&limiter, &client), Duration::from_secs(10));
        // Any length of silence allows one burst.
        advance(Duration::from_secs(3600)).await;
        for _ in 0..3 {
            limiter.take(&client).unwrap();
        }
        refused(&limiter, &client);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_have_separate_limits() {
        let limiter = limiter(1, 1, 100);
        let clients = [
            ClientId::Key(0),
            ClientId::Key(1),
            ClientId::Address(None),
            ClientId::Address(Some([127, 0, 0, 1].into())),
            ClientId::Address(Some([127, 0, 0, 2].into())),
        ];
        for client in &clients {
            limiter.take(client).unwrap();
        }
        for client in &clients {
            assert_eq!(refused(&limiter, client), Duration::from_secs(60));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn forged_addresses_take_bounded_memory() {
        let limiter = limiter(1, 1, 10);
        for number in 0..1000_u32 {
            limiter.take(&ClientId::Address(Some(number.to_be_bytes().into()))).unwrap();
        }
        let clients = &limiter.limiter.into_state_store().0;
        clients.run_pending_tasks();
        assert!(clients.entry_count() <= 10, "{} are tracked", clients.entry_count());
        // The most recent ones are tracked.
        assert!(clients.contains_key(&ClientId::Address(Some(999_u32.to_be_bytes().into()))));
    }
}

//! A bounded store of values.

use std::fmt;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::key::Key;

/// Bytes that moka itself needs for an entry: its slot in the hash map and in the queues for eviction
/// and expiry, times and counters. Measured with 100,000 entries of known size.
const ENTRY_BYTES: usize = 300;

/// Values that know their memory use.
pub trait Weigh {
    /// Bytes, including those on the heap.
    fn bytes(&self) -> usize;
}

/// Values by key, within a number of bytes and a time to live.
/// Cheap to clone; clones share the values.
#[derive(Clone)]
pub struct Store<V> {
    /// `None` for a capacity of zero, which stores nothing.
    cache: Option<Cache<Key, V>>,
}

impl<V: Weigh + Clone + Send + Sync + 'static> Store<V> {
    /// A store of at most `max_bytes`, bookkeeping included. A value expires after `time_to_live`. Values that
    /// are used seldom are evicted first, and if all others are used more often, a new one is not kept.
    #[must_use]
    pub fn new(max_bytes: u64, time_to_live: Duration) -> Self {
        Self::with(max_bytes, time_to_live, EvictionPolicy::tiny_lfu())
    }

    /// The same, but those that were not used for the longest time are evicted first. A new value is always
    /// kept, for those that need it next.
    #[must_use]
    pub fn of_recent(max_bytes: u64, time_to_live: Duration) -> Self {
        Self::with(max_bytes, time_to_live, EvictionPolicy::lru())
    }

    fn with(max_bytes: u64, time_to_live: Duration, policy: EvictionPolicy) -> Self {
        let weigh = |_: &Key, value: &V| {
            let bytes = value.bytes() + size_of::<Key>() + ENTRY_BYTES;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let cache = (max_bytes > 0).then(|| {
            Cache::builder()
                .max_capacity(max_bytes)
                .weigher(weigh)
                .time_to_live(time_to_live)
                .eviction_policy(policy)
                .build()
        });
        Self { cache }
    }

    /// Whether the store ever keeps a value.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.cache.is_some()
    }

    /// The value of `key`, if it is stored.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<V> {
        self.cache.as_ref()?.get(key)
    }

    /// Stores the value of `key`.
    pub fn put(&self, key: Key, value: V) {
        if let Some(cache) = &self.cache {
            cache.insert(key, value);
            // Otherwise moka evicts later, when up to some hundred values more than fit are in memory.
            cache.run_pending_tasks();
        }
    }

    /// Removes the values of which `is_gone` holds. Looks at all of them.
    pub fn remove_if(&self, is_gone: impl Fn(&V) -> bool) {
        let Some(cache) = &self.cache else { return };
        for (key, value) in cache {
            if is_gone(&value) {
                cache.invalidate(key.as_ref());
            }
        }
        cache.run_pending_tasks();
    }

    /// Bytes in use, bookkeeping included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, |cache| {
            cache.run_pending_tasks();
            cache.weighted_size()
        })
    }
}

impl<V> fmt::Debug for Store<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::KeyNamespace;

    #[derive(Clone)]
    struct Lump(usize);

    impl Weigh for Lump {
        fn bytes(&self) -> usize {
            self.0
        }
    }

    fn key(n: u32) -> Key {
        KeyNamespace::new(&[]).key("test", &[&n.to_le_bytes()])
    }

    #[test]
    fn the_limit_counts_bytes_and_not_values() {
        let store = Store::new(100_000, Duration::from_secs(60));
        for n in 0..1000 {
            store.put(key(n), Lump(10_000));
        }
        let bytes = store.bytes();
        assert!(bytes <= 100_000 && bytes > 50_000, "{bytes}");
        // A value larger than the whole store is never kept.
        store.put(key(5000), Lump(200_000));
        assert!(store.bytes() <= 100_000);
        assert!(store.get(&key(5000)).is_none());
    }

    #[test]
    fn a_new_value_is_kept_where_the_recent_ones_are() {
        let store = Store::of_recent(100_000, Duration::from_secs(60));
        for n in 0..100 {
            store.put(key(n), Lump(10_000));
            // Those of which there is no room for more are used often.
            for old in 0..9 {
                let _ = store.get(&key(old));
            }
            assert!(store.get(&key(n)).is_some(), "{n}");
            assert!(store.bytes() <= 100_000);
        }
    }

    #[test]
    fn old_values_expire() {
        let store = Store::new(100_000, Duration::from_millis(1));
        store.put(key(1), Lump(1));
        let begin = std::time::Instant::now();
        while store.get(&key(1)).is_some() {
            assert!(begin.elapsed() < Duration::from_secs(10), "the value never expires");
            std::thread::yield_now();
        }
        assert_eq!(store.bytes(), 0, "and its memory is free");
    }

    #[test]
    fn values_are_removed_by_what_they_are() {
        let store = Store::new(100_000, Duration::from_secs(60));
        for n in 0..10 {
            store.put(key(n), Lump(n as usize));
        }
        store.remove_if(|lump| lump.0 % 2 == 0);
        for n in 0..10 {
            assert_eq!(store.get(&key(n)).is_some(), n % 2 == 1, "{n}");
        }
    }

    #[test]
    fn a_capacity_of_zero_stores_nothing() {
        let store = Store::new(0, Duration::from_secs(60));
        store.put(key(1), Lump(0));
        store.remove_if(|_| true);
        assert!(!store.is_enabled() && store.get(&key(1)).is_none());
    }
}

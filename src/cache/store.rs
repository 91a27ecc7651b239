//! A bounded memory of values.

use std::fmt;
use std::time::Duration;

use moka::sync::Cache;

use super::key::Key;

/// What moka itself keeps of an entry: its place in the hash map, in the queues of the least used
/// and the oldest, its times and counters. Measured with 100,000 entries of known size.
const ENTRY_BYTES: usize = 300;

/// Values that know how much memory they hold.
pub trait Weigh {
    /// Bytes, those on the heap included.
    fn bytes(&self) -> usize;
}

/// Values by their keys, within a number of bytes and a time to live. What is used least goes
/// first. Cheap to clone; clones share the values.
#[derive(Clone)]
pub struct Store<V> {
    /// `None` for a capacity of zero, which keeps nothing.
    cache: Option<Cache<Key, V>>,
}

impl<V: Weigh + Clone + Send + Sync + 'static> Store<V> {
    /// Room for `max_bytes`, with what the bookkeeping takes; a value is forgotten when it is
    /// `time_to_live` old.
    #[must_use]
    pub fn new(max_bytes: u64, time_to_live: Duration) -> Self {
        let weigh = |_: &Key, value: &V| {
            let bytes = value.bytes() + size_of::<Key>() + ENTRY_BYTES;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let cache = (max_bytes > 0).then(|| {
            Cache::builder()
                .max_capacity(max_bytes)
                .weigher(weigh)
                .time_to_live(time_to_live)
                .build()
        });
        Self { cache }
    }

    /// Whether anything is ever kept.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.cache.is_some()
    }

    /// The value of `key`, if it is known.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<V> {
        self.cache.as_ref()?.get(key)
    }

    /// From now on `key` has this value.
    pub fn put(&self, key: Key, value: V) {
        if let Some(cache) = &self.cache {
            cache.insert(key, value);
        }
    }

    /// Bytes that the values hold, bookkeeping included.
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
    fn bytes_bound_it_and_not_the_number() {
        let store = Store::new(100_000, Duration::from_secs(60));
        for n in 0..1000 {
            store.put(key(n), Lump(10_000));
        }
        let bytes = store.bytes();
        assert!(bytes <= 100_000 && bytes > 50_000, "{bytes}");
        // More than all of it is never kept.
        store.put(key(5000), Lump(200_000));
        assert!(store.bytes() <= 100_000);
        assert!(store.get(&key(5000)).is_none());
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let store = Store::new(100_000, Duration::from_millis(1));
        store.put(key(1), Lump(1));
        let begin = std::time::Instant::now();
        while store.get(&key(1)).is_some() {
            assert!(begin.elapsed() < Duration::from_secs(10), "it is never forgotten");
            std::thread::yield_now();
        }
        assert_eq!(store.bytes(), 0, "and its memory is free");
    }

    #[test]
    fn no_room_keeps_nothing() {
        let store = Store::new(0, Duration::from_secs(60));
        store.put(key(1), Lump(0));
        assert!(!store.keeps() && store.get(&key(1)).is_none());
    }
}

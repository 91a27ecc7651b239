//! How many connections there are. When the limit is reached, the connection that has been idle the longest
//! is closed. Connections with a request in progress never are, and a client that opens thousands loses its
//! own first.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Limits the number of connections of a listener.
#[derive(Debug, Clone)]
pub(in crate::http) struct ConnectionLimit {
    shared: Arc<AllConnections>,
}

#[derive(Debug)]
struct AllConnections {
    most: usize,
    open: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    /// Notified when a connection was closed or became idle.
    changed: Notify,
    /// A counter that orders events.
    now: AtomicU64,
}

/// The state of one connection.
#[derive(Debug, Default)]
pub(super) struct ConnectionState {
    /// Requests in progress.
    requests: AtomicUsize,
    /// Requests so far.
    pub(super) begun: AtomicU64,
    /// The last request was refused while its body was still arriving.
    pub(super) linger: AtomicBool,
    /// It has left HTTP.
    pub(super) upgraded: AtomicBool,
    idle_since: AtomicU64,
    evicted: AtomicBool,
    /// Wakes the task that waits for the next request.
    waker: Mutex<Option<Waker>>,
}

/// The slot of one connection, which is free again when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct ConnectionSlot(Arc<RegisteredConnection>);

#[derive(Debug)]
struct RegisteredConnection {
    id: u64,
    state: Arc<ConnectionState>,
    limit: ConnectionLimit,
}

impl ConnectionLimit {
    pub(in crate::http) fn new(most: usize) -> Self {
        let shared = AllConnections {
            most,
            open: Mutex::default(),
            changed: Notify::new(),
            now: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits for a free slot.
    pub(super) async fn admit(&self) -> ConnectionSlot {
        loop {
            if let Some(slot) = self.try_admit() {
                return slot;
            }
            self.shared.changed.notified().await;
        }
    }

    /// A free slot. If there is none, the connection that has been idle the longest is evicted.
    fn try_admit(&self) -> Option<ConnectionSlot> {
        let mut open = self.shared.open.lock();
        if open.len() < self.shared.most {
            let id = self.tick();
            let state =
                Arc::new(ConnectionState { idle_since: id.into(), ..ConnectionState::default() });
            open.insert(id, Arc::clone(&state));
            let limit = self.clone();
            return Some(ConnectionSlot(Arc::new(RegisteredConnection { id, state, limit })));
        }
        let idle = open.values().filter(|state| state.requests.load(Ordering::Relaxed) == 0);
        if let Some(oldest) = idle.min_by_key(|state| state.idle_since.load(Ordering::Relaxed)) {
            oldest.evicted.store(true, Ordering::Relaxed);
            if let Some(waker) = oldest.waker.lock().take() {
                waker.wake();
            }
        }
        None
    }

    fn tick(&self) -> u64 {
        self.shared.now.fetch_add(1, Ordering::Relaxed)
    }
}

impl ConnectionSlot {
    /// A request has begun.
    pub(super) fn begin(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub(super) fn end(&self) {
        self.idle_since.store(self.0.limit.tick(), Ordering::Relaxed);
        if self.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.limit.shared.changed.notify_one();
        }
    }

    /// Whether a request is in progress.
    pub(super) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// Whether this idle connection was evicted. If not, an eviction will wake the task.
    pub(super) fn is_evicted(&self, cx: &mut Context<'_>) -> bool {
        // In this order, so that an eviction in between finds the waker.
        *self.waker.lock() = Some(cx.waker().clone());
        self.evicted.load(Ordering::Relaxed)
    }
}

impl Deref for ConnectionSlot {
    type Target = ConnectionState;

    fn deref(&self) -> &ConnectionState {
        &self.0.state
    }
}

impl Drop for RegisteredConnection {
    fn drop(&mut self) {
        self.limit.shared.open.lock().remove(&self.id);
        self.limit.shared.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn evicted(slot: &ConnectionSlot) -> bool {
        poll_fn(|cx| Poll::Ready(slot.is_evicted(cx))).await
    }

    #[tokio::test]
    async fn the_longest_idle_connection_is_evicted_and_a_busy_one_never_is() {
        let limit = ConnectionLimit::new(3);
        let (busy, first, second) = (limit.admit().await, limit.admit().await, limit.admit().await);
        busy.begin();
        // The first one was used after the second one was opened.
        first.begin();
        first.end();
        let admitting = limit.clone();
        let admitted = tokio::spawn(async move { admitting.admit().await });
        while !evicted(&second).await {
            tokio::task::yield_now().await;
        }
        assert!(!evicted(&busy).await && !evicted(&first).await);
        assert!(!admitted.is_finished(), "there is no slot before it is closed");
        drop(second);
        let _fourth = admitted.await.unwrap();
    }

    #[tokio::test]
    async fn while_all_are_busy_the_next_one_waits() {
        let limit = ConnectionLimit::new(1);
        let only = limit.admit().await;
        only.begin();
        let admitting = limit.clone();
        let admitted = tokio::spawn(async move { admitting.admit().await });
        tokio::task::yield_now().await;
        assert!(!evicted(&only).await);
        only.end();
        while !evicted(&only).await {
            tokio::task::yield_now().await;
        }
        drop(only);
        admitted.await.unwrap();
    }
}

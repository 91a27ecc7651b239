//! How many connections there are at a time, and which of them makes room for a new one.
//!
//! A client can open connections faster than silence ends them. When there are as many as there may
//! be, the one that has been without a request for the longest time goes: connections that are
//! being answered never do, and a client that keeps thousands open loses its own first.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use tokio::sync::Notify;

/// All connections of a listener.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    most: usize,
    members: Mutex<HashMap<u64, Arc<Signals>>>,
    /// A connection was closed or became idle.
    changed: Notify,
    /// Counts up, and so orders what happens.
    now: AtomicU64,
}

/// What is known of one connection.
#[derive(Debug, Default)]
pub(super) struct Signals {
    requests: AtomicUsize,
    /// The last request was refused and its body may be on the way still.
    pub(super) linger: AtomicBool,
    idle_since: AtomicU64,
    must_go: AtomicBool,
    /// Of the task that waits for the next request.
    waker: Mutex<Option<Waker>>,
}

/// One connection. The last clone that is dropped takes it out of the crowd.
#[derive(Debug, Clone)]
pub(super) struct Member(Arc<Place>);

#[derive(Debug)]
struct Place {
    id: u64,
    signals: Arc<Signals>,
    crowd: ConnectionLimit,
}

/// No code that can panic runs while one of these locks is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ConnectionLimit {
    pub(super) fn new(most: usize) -> Self {
        let shared = Shared {
            most,
            members: Mutex::default(),
            changed: Notify::new(),
            now: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A place for one more connection, when there is one.
    pub(super) async fn admit(&self) -> Member {
        loop {
            if let Some(member) = self.try_admit() {
                return member;
            }
            self.shared.changed.notified().await;
        }
    }

    /// A place, or a step towards one.
    fn try_admit(&self) -> Option<Member> {
        let mut members = lock(&self.shared.members);
        if members.len() < self.shared.most {
            let id = self.tick();
            let signals = Arc::new(Signals { idle_since: id.into(), ..Signals::default() });
            members.insert(id, Arc::clone(&signals));
            return Some(Member(Arc::new(Place { id, signals, crowd: self.clone() })));
        }
        let idle = members.values().filter(|member| member.requests.load(Ordering::Relaxed) == 0);
        if let Some(oldest) = idle.min_by_key(|member| member.idle_since.load(Ordering::Relaxed)) {
            oldest.must_go.store(true, Ordering::Relaxed);
            if let Some(waker) = lock(&oldest.waker).take() {
                waker.wake();
            }
        }
        None
    }

    fn tick(&self) -> u64 {
        self.shared.now.fetch_add(1, Ordering::Relaxed)
    }
}

impl Member {
    /// A request has begun.
    pub(super) fn begin(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub(super) fn end(&self) {
        self.idle_since.store(self.0.crowd.tick(), Ordering::Relaxed);
        if self.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.crowd.shared.changed.notify_one();
        }
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// Whether this idle connection is to make room; if not, the task is woken when it is.
    pub(super) fn must_go(&self, cx: &mut Context<'_>) -> bool {
        // In this order: a wish that comes in between finds the waker.
        *lock(&self.waker) = Some(cx.waker().clone());
        self.must_go.load(Ordering::Relaxed)
    }
}

impl Deref for Member {
    type Target = Signals;

    fn deref(&self) -> &Signals {
        &self.0.signals
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.crowd.shared.members).remove(&self.id);
        self.crowd.shared.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn gone(member: &Member) -> bool {
        poll_fn(|cx| Poll::Ready(member.must_go(cx))).await
    }

    #[tokio::test]
    async fn the_longest_idle_one_makes_room_and_a_busy_one_never_does() {
        let crowd = ConnectionLimit::new(3);
        let (busy, first, second) = (crowd.admit().await, crowd.admit().await, crowd.admit().await);
        busy.begin();
        // The first one was used since the second one came.
        first.begin();
        first.end();
        let admitting = crowd.clone();
        let admitted = tokio::spawn(async move { admitting.admit().await });
        while !gone(&second).await {
            tokio::task::yield_now().await;
        }
        assert!(!gone(&busy).await && !gone(&first).await);
        assert!(!admitted.is_finished(), "there is no room before it has gone");
        drop(second);
        let _fourth = admitted.await.unwrap();
    }

    #[tokio::test]
    async fn while_all_are_busy_the_next_one_waits_for_the_first_to_end() {
        let crowd = ConnectionLimit::new(1);
        let only = crowd.admit().await;
        only.begin();
        let admitting = crowd.clone();
        let admitted = tokio::spawn(async move { admitting.admit().await });
        tokio::task::yield_now().await;
        assert!(!gone(&only).await);
        only.end();
        while !gone(&only).await {
            tokio::task::yield_now().await;
        }
        drop(only);
        admitted.await.unwrap();
    }
}

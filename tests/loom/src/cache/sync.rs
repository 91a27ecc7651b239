//! Loom's lock in the form of `parking_lot`, and a channel that behaves as tokio's `watch`, for which loom
//! has no model.

use loom::sync::MutexGuard as LoomGuard;

pub(super) type MutexGuard<'m, T> = LoomGuard<'m, T>;

#[derive(Debug)]
pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self(loom::sync::Mutex::new(T::default()))
    }
}

pub(super) mod watch {
    use std::future::poll_fn;
    use std::ops::Deref;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use loom::sync::{Mutex, MutexGuard};

    #[derive(Debug)]
    struct Channel<S> {
        state: S,
        /// How often the state was changed.
        version: usize,
        receivers: usize,
        closed: bool,
        wakers: Vec<Waker>,
    }

    impl<S> Channel<S> {
        fn wake(&mut self) {
            self.wakers.drain(..).for_each(Waker::wake);
        }

        /// `Ready` if `done`, or else a registration for the next change.
        fn poll<T>(&mut self, context: &Context<'_>, done: Option<T>) -> Poll<T> {
            match done {
                Some(value) => Poll::Ready(value),
                None => {
                    self.wakers.push(context.waker().clone());
                    Poll::Pending
                }
            }
        }
    }

    type Shared<S> = Arc<Mutex<Channel<S>>>;

    fn lock<S>(shared: &Shared<S>) -> MutexGuard<'_, Channel<S>> {
        shared.lock().unwrap()
    }

    pub(in super::super) fn channel<S>(state: S) -> (Sender<S>, Receiver<S>) {
        let channel =
            Channel { state, version: 0, receivers: 1, closed: false, wakers: Vec::new() };
        let shared = Arc::new(Mutex::new(channel));
        (Sender(Arc::clone(&shared)), Receiver { shared, seen: 0 })
    }

    #[derive(Debug)]
    pub(in super::super) struct Sender<S>(Shared<S>);

    impl<S> Sender<S> {
        pub(in super::super) fn subscribe(&self) -> Receiver<S> {
            let mut channel = lock(&self.0);
            channel.receivers += 1;
            Receiver { shared: Arc::clone(&self.0), seen: channel.version }
        }

        pub(in super::super) fn receiver_count(&self) -> usize {
            lock(&self.0).receivers
        }

        pub(in super::super) fn send_modify(&self, change: impl FnOnce(&mut S)) {
            let mut channel = lock(&self.0);
            change(&mut channel.state);
            channel.version += 1;
            channel.wake();
        }

        /// Completes when there is no receiver.
        pub(in super::super) async fn closed(&self) {
            poll_fn(|context| {
                let mut channel = lock(&self.0);
                let done = (channel.receivers == 0).then_some(());
                channel.poll(context, done)
            })
            .await;
        }
    }

    impl<S> Drop for Sender<S> {
        fn drop(&mut self) {
            let mut channel = lock(&self.0);
            channel.closed = true;
            channel.wake();
        }
    }

    #[derive(Debug)]
    pub(in super::super) struct Receiver<S> {
        shared: Shared<S>,
        seen: usize,
    }

    impl<S> Receiver<S> {
        pub(in super::super) fn borrow(&self) -> impl Deref<Target = S> {
            State(lock(&self.shared))
        }

        /// Completes when the state has changed; an error if there is no sender any more.
        pub(in super::super) async fn changed(&mut self) -> Result<(), ()> {
            let Self { shared, seen } = self;
            poll_fn(|context| {
                let mut channel = lock(shared);
                let done = if channel.version != *seen {
                    *seen = channel.version;
                    Some(Ok(()))
                } else {
                    channel.closed.then_some(Err(()))
                };
                channel.poll(context, done)
            })
            .await
        }
    }

    impl<S> Drop for Receiver<S> {
        fn drop(&mut self) {
            let mut channel = lock(&self.shared);
            channel.receivers -= 1;
            channel.wake();
        }
    }

    struct State<'c, S>(MutexGuard<'c, Channel<S>>);

    impl<S> Deref for State<'_, S> {
        type Target = S;

        fn deref(&self) -> &S {
            &self.0.state
        }
    }
}

//! What a request on a WebSocket holds from its first frame to the last byte of its answer.

use std::fmt;

use crate::http::connection::{BusyGuard, Connection};
use crate::http::state::{ActiveRequest, AppState};

/// Where requests of one connection begin.
#[derive(Clone)]
pub(super) struct Entrance {
    pub(super) state: AppState,
    /// `None` without a socket.
    pub(super) connection: Option<Connection>,
}

impl Entrance {
    /// Counts a request until the result is dropped.
    pub(super) fn enter(&self) -> InProgress {
        InProgress {
            _active: self.state.enter(),
            _busy: self.connection.as_ref().map(Connection::begin_request),
        }
    }
}

/// A request in progress: a server that stops waits for it, and its connection is not evicted.
pub(super) struct InProgress {
    _active: ActiveRequest,
    _busy: Option<BusyGuard>,
}

impl fmt::Debug for InProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProgress")
    }
}

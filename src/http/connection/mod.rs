//! Limits for connections: how many there are, how long they may be silent, and how they end.
//!
//! - `axum::serve` waits forever for the headers of a request, so a client that sends one byte a
//!   minute, or nothing, could hold a socket for as long as it likes. [`TimeoutListener`] closes
//!   silent connections, and those of clients that do not read their answers.
//! - A client can open connections faster than silence ends them: `limit`.
//! - hyper doubles the buffer of a connection up to 400 KB, for bodies that arrive fast and for endless
//!   headers. Reads in small pieces and a limit on headers keep it small.
//! - A refused upload must be read to its end. Otherwise the kernel resets the connection, and the
//!   client never sees the refusal.

mod limit;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

pub(super) use self::limit::ConnectionLimit;
use self::limit::ConnectionSlot;

/// How long the rest of a refused upload is read and discarded.
const LINGER: Duration = Duration::from_secs(10);

/// How many bytes of it are read and discarded at most.
const LINGER_BYTES: usize = 256 << 20;

/// The most bytes of a read, of a head and of a body. Each piece of a body wakes a task, so that large
/// photos should have few. hyper's buffer, which doubles when a read fills it, stays at 64 KB: the
/// allocator maps and unmaps larger ones each time.
const READ_BYTES: [usize; 2] = [16 << 10, (64 << 10) - 1];

/// The most bytes before a request begins: its request line and headers. hyper would accept six times as
/// much.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// The answer to more, as hyper writes it.
const HEAD_TOO_LONG: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\
    connection: close\r\ncontent-length: 0\r\n\r\n";

/// The most memory of a connection: hyper's buffer, pieces of a body on their way to the handler, the
/// answer, the state of both.
pub(super) const BUFFER_BYTES: u64 = 256 << 10;

/// Accepts connections and closes those that are silent for too long.
#[derive(Debug)]
pub(super) struct TimeoutListener {
    listener: TcpListener,
    idle: Duration,
    limit: ConnectionLimit,
}

impl TimeoutListener {
    /// Accepts connections within `limit`, which listeners may share. `idle` limits the time from the start of a
    /// connection, or from the last answer, to the end of the next request's headers, and the time
    /// until the client reads the next bytes of an answer.
    pub(super) fn new(listener: TcpListener, idle: Duration, limit: ConnectionLimit) -> Self {
        Self { listener, idle, limit }
    }
}

impl Listener for TimeoutListener {
    type Io = TimeoutStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Meanwhile further connections wait in the kernel.
        let slot = self.limit.admit().await;
        // Answers are small and written at once; Nagle's algorithm would only delay them.
        let _ = stream.set_nodelay(true);
        (TimeoutStream::new(stream, slot, self.idle), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The connection of a request, from which handlers can reach its stream.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    slot: ConnectionSlot,
    peer: SocketAddr,
}

impl Connection {
    pub(super) fn new(stream: &TimeoutStream, peer: SocketAddr) -> Self {
        Self { slot: stream.slot.clone(), peer }
    }

    /// Marks a request as in progress until the result is dropped: meanwhile silence is allowed.
    pub(super) fn begin_request(&self) -> BusyGuard {
        self.slot.begin();
        BusyGuard(self.slot.clone())
    }

    /// Leaves the limits on silence and on heads to the protocol that follows from now on. While no
    /// request is in progress, the connection may still be evicted.
    pub(super) fn upgrade(&self) {
        self.slot.upgraded.store(true, Ordering::Relaxed);
    }

    /// The address of the peer: the client or a proxy.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    /// Reads the rest of the last request before closing: it was refused while its body was still
    /// arriving.
    pub(super) fn linger(&self) {
        self.slot.linger.store(true, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, TimeoutListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TimeoutListener>) -> Self {
        Self::new(stream.io(), *stream.remote_addr())
    }
}

/// See [`Connection::begin_request`].
#[derive(Debug)]
pub(super) struct BusyGuard(ConnectionSlot);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A TCP stream that ends after too long a silence, and that closes without losing an answer.
#[derive(Debug)]
pub(super) struct TimeoutStream {
    stream: TcpStream,
    slot: ConnectionSlot,
    idle: Duration,
    deadline: Pin<Box<Sleep>>,
    /// Runs while the client does not read the bytes that were written.
    stalled: Option<Pin<Box<Sleep>>>,
    was_busy: bool,
    /// Requests that had begun when it was last looked at.
    begun: u64,
    /// Bytes since the last request.
    head: usize,
    /// The most of them.
    most_head: usize,
    /// Bytes discarded after the end; `None` before it.
    discarded: Option<usize>,
}

impl TimeoutStream {
    fn new(stream: TcpStream, slot: ConnectionSlot, idle: Duration) -> Self {
        Self {
            stream,
            slot,
            idle,
            deadline: Box::pin(tokio::time::sleep(idle)),
            stalled: None,
            was_busy: false,
            begun: 0,
            head: 0,
            most_head: MAX_HEAD_BYTES,
            discarded: None,
        }
    }

    /// Without the limit on heads. In HTTP/2 the first bytes of a body may arrive before its request has
    /// begun here, and the protocol has a limit of its own.
    #[cfg(feature = "grpc")]
    pub(super) fn for_http2(self) -> Self {
        Self { most_head: usize::MAX, ..self }
    }

    fn restart(&mut self, time: Duration) {
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.deadline.as_mut().poll(cx)
    }

    /// Closes the connection of a client that reads nothing for too long: it may be gone.
    fn poll_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        if !self.slot.is_busy() && self.slot.is_evicted(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let idle = self.idle;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Answers to a head that is too long; ready when the client has read that, or for too long has not.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.discarded.is_none() {
            // Nothing else is being sent, so it fits into the kernel's buffer. A client that is gone
            // needs no answer.
            let _ = self.stream.try_write(HEAD_TOO_LONG);
            let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
            self.discarded = Some(0);
            self.restart(LINGER);
        }
        self.poll_discard(cx)
    }

    /// Reads and discards incoming data; ready when the data has ended or a limit is reached.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 16 * 1024];
        while self.poll_deadline(cx).is_pending() && !self.slot.is_evicted(cx) {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            let length = buffer.filled().len();
            let discarded = self.discarded.unwrap_or(0) + length;
            self.discarded = Some(discarded);
            if read.is_err() || length == 0 || discarded > LINGER_BYTES {
                break;
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for TimeoutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.slot.is_busy() {
            self.was_busy = true;
        } else if self.slot.upgraded.load(Ordering::Relaxed) {
            if self.slot.is_evicted(cx) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        } else {
            // A request may begin and end between two reads.
            let begun = self.slot.begun.load(Ordering::Relaxed);
            if self.was_busy || self.begun != begun {
                (self.was_busy, self.begun, self.head) = (false, begun, 0);
                let idle = self.idle;
                self.restart(idle);
            }
            // First, because a client that keeps sending single bytes must not defer it.
            if self.poll_deadline(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            if self.slot.is_evicted(cx) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            if self.head > self.most_head {
                ready!(self.poll_refuse(cx));
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
        let most = buffer.remaining().min(READ_BYTES[usize::from(self.was_busy)]);
        let mut piece = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece))?;
        let length = piece.filled().len();
        buffer.advance(length);
        self.head += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TimeoutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.poll_stalled(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.poll_stalled(cx, flushed)
    }

    /// Closes the sending side and, after a refusal, reads the data that is still arriving.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.discarded.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.discarded = Some(0);
            self.restart(LINGER);
        }
        if self.slot.linger.load(Ordering::Relaxed) {
            ready!(self.poll_discard(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.poll_stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

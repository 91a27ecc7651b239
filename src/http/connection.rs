//! What a connection may do to the server: how long it may be silent, and how it ends.
//!
//! `axum::serve` waits forever for the headers of a request, so a client that sends one byte a
//! minute, or nothing, would hold a socket for as long as it likes. And a refused upload must be
//! read to its end, or the kernel resets the connection and the client never sees the refusal.
//! How many connections there are is bounded by `crowd`.

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

use super::connection_limit::{ConnectionLimit, Member};

/// How long the rest of a refused upload is read and thrown away.
const LINGER: Duration = Duration::from_secs(10);

/// And how much of it.
const LINGER_BYTES: usize = 256 << 20;

/// Accepts connections that are closed when they are silent for too long.
#[derive(Debug)]
pub(super) struct TimeoutListener {
    listener: TcpListener,
    idle: Duration,
    crowd: ConnectionLimit,
}

impl TimeoutListener {
    /// At most `most` connections at a time. Each may take `idle` from its start, or from the last
    /// answer, to the end of the next request's headers, and for taking the next bytes of an answer.
    pub(super) fn new(listener: TcpListener, idle: Duration, most: usize) -> Self {
        Self { listener, idle, crowd: ConnectionLimit::new(most) }
    }
}

impl Listener for TimeoutListener {
    type Io = TimeoutStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // The next ones wait in the kernel meanwhile.
        let member = self.crowd.admit().await;
        // Answers are small and written at once; waiting for more only delays them.
        let _ = stream.set_nodelay(true);
        (TimeoutStream::new(stream, member, self.idle), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What the requests of a connection tell its stream.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    member: Member,
    peer: SocketAddr,
}

impl Connection {
    /// While the result lives, a request is being answered and silence is no fault.
    pub(super) fn busy(&self) -> Busy {
        self.member.begin();
        Busy(self.member.clone())
    }

    /// Who is at the other end: the client, or a proxy.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    /// The last request was refused and its body may be on the way still.
    pub(super) fn linger(&self) {
        self.member.linger.store(true, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, TimeoutListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TimeoutListener>) -> Self {
        Self { member: stream.io().member.clone(), peer: *stream.remote_addr() }
    }
}

/// See [`Connection::busy`].
#[derive(Debug)]
pub(super) struct Busy(Member);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A TCP stream with a deadline for silence, which ends politely.
#[derive(Debug)]
pub(super) struct TimeoutStream {
    stream: TcpStream,
    member: Member,
    idle: Duration,
    deadline: Pin<Box<Sleep>>,
    /// Runs while the client takes nothing of what is written.
    stalled: Option<Pin<Box<Sleep>>>,
    was_busy: bool,
    /// Bytes thrown away after the end; `None` before it.
    discarded: Option<usize>,
}

impl TimeoutStream {
    fn new(stream: TcpStream, member: Member, idle: Duration) -> Self {
        Self {
            stream,
            member,
            idle,
            deadline: Box::pin(tokio::time::sleep(idle)),
            stalled: None,
            was_busy: false,
            discarded: None,
        }
    }

    fn restart(&mut self, time: Duration) {
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.deadline.as_mut().poll(cx)
    }

    /// Gives up on a client that takes nothing for too long: it may be gone without a word.
    fn poll_patience<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        if !self.member.is_busy() && self.member.must_go(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let idle = self.idle;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Ready when there is nothing more to wait for.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 16 * 1024];
        while self.poll_deadline(cx).is_pending() && !self.member.must_go(cx) {
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
        if self.member.is_busy() {
            self.was_busy = true;
        } else {
            if self.was_busy {
                self.was_busy = false;
                let idle = self.idle;
                self.restart(idle);
            }
            // Asked first: a client that keeps dripping must not put it off.
            if self.poll_deadline(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            if self.member.must_go(cx) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TimeoutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.poll_patience(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.poll_patience(cx, flushed)
    }

    /// Says that nothing more is sent, and after a refusal reads what is still arriving.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.discarded.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.discarded = Some(0);
            self.restart(LINGER);
        }
        if self.member.linger.load(Ordering::Relaxed) {
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
        self.poll_patience(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

//! What a connection may do to the server: how long it may be silent, and how it ends.
//!
//! `axum::serve` waits forever for the headers of a request, so a client that sends one byte a
//! minute, or nothing, would hold a socket for as long as it likes. And a refused upload must be
//! read to its end, or the kernel resets the connection and the client never sees the refusal.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

/// How long the rest of a refused upload is read and thrown away.
const LINGER: Duration = Duration::from_secs(10);

/// And how much of it.
const LINGER_BYTES: usize = 256 << 20;

/// Accepts connections that are closed when they are silent for too long.
#[derive(Debug)]
pub(super) struct PatientListener {
    listener: TcpListener,
    idle: Duration,
}

impl PatientListener {
    /// A connection may take `idle` from its start, or from the last answer, to the end of the
    /// next request's headers.
    pub(super) fn new(listener: TcpListener, idle: Duration) -> Self {
        Self { listener, idle }
    }
}

impl Listener for PatientListener {
    type Io = PatientStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Answers are small and written at once; waiting for more only delays them.
        let _ = stream.set_nodelay(true);
        (PatientStream::new(stream, self.idle), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What the requests of a connection tell its stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Connection {
    shared: Arc<Signals>,
}

#[derive(Debug, Default)]
struct Signals {
    requests: AtomicUsize,
    linger: AtomicBool,
}

impl Connection {
    /// While the result lives, a request is being answered and silence is no fault.
    pub(super) fn busy(&self) -> Busy {
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// The last request was refused and its body may be on the way still.
    pub(super) fn linger(&self) {
        self.shared.linger.store(true, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, PatientListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, PatientListener>) -> Self {
        stream.io().connection.clone()
    }
}

/// See [`Connection::busy`].
#[derive(Debug)]
pub(super) struct Busy(Connection);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.shared.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A TCP stream with a deadline for silence, which ends politely.
#[derive(Debug)]
pub(super) struct PatientStream {
    stream: TcpStream,
    connection: Connection,
    idle: Duration,
    deadline: Pin<Box<Sleep>>,
    was_busy: bool,
    /// Bytes thrown away after the end; `None` before it.
    discarded: Option<usize>,
}

impl PatientStream {
    fn new(stream: TcpStream, idle: Duration) -> Self {
        Self {
            stream,
            connection: Connection::default(),
            idle,
            deadline: Box::pin(tokio::time::sleep(idle)),
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

    /// Ready when there is nothing more to wait for.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 16 * 1024];
        while self.poll_deadline(cx).is_pending() {
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

impl AsyncRead for PatientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.connection.shared.requests.load(Ordering::Relaxed) > 0 {
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
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PatientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Says that nothing more is sent, and after a refusal reads what is still arriving.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.discarded.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.discarded = Some(0);
            self.restart(LINGER);
        }
        if self.connection.shared.linger.load(Ordering::Relaxed) {
            ready!(self.poll_discard(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

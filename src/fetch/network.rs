//! Names and connections: the system's, or in tests those of a script.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Names that are looked up at a time. The system's resolver takes a thread for each and cannot be
/// interrupted, so a lookup counts until it has ended, even if nobody waits for it.
const MAX_LOOKUPS: usize = 32;

/// What a call of [`Network`] returns.
pub(super) type Pending<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// The only way from this module to names and sockets.
pub(super) trait Network: fmt::Debug + Send + Sync {
    /// All addresses of `name`.
    fn resolve<'a>(&'a self, name: &'a str) -> Pending<'a, Vec<IpAddr>>;

    /// A connection to exactly this address.
    fn connect(&self, address: SocketAddr) -> Pending<'_, Connected>;
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) stream: TcpStream,
    /// The other end is on this machine as well.
    pub(super) is_own: bool,
}

/// The network of the system. Proxies that the environment names are not used.
#[derive(Debug)]
pub(super) struct SystemNetwork {
    lookups: Arc<Semaphore>,
}

impl SystemNetwork {
    pub(super) fn new() -> Self {
        Self { lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl Network for SystemNetwork {
    fn resolve<'a>(&'a self, name: &'a str) -> Pending<'a, Vec<IpAddr>> {
        Box::pin(async move {
            let place =
                Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
            let name = name.to_owned();
            let lookup = tokio::task::spawn_blocking(move || {
                let _place = place;
                let addresses = (name.as_str(), 0).to_socket_addrs()?;
                Ok(addresses.map(|address| address.ip()).collect())
            });
            lookup.await.map_err(io::Error::other)?
        })
    }

    fn connect(&self, address: SocketAddr) -> Pending<'_, Connected> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // The system connects an address of its own from the same address.
            let is_own = stream.local_addr()?.ip() == stream.peer_addr()?.ip();
            Ok(Connected { stream, is_own })
        })
    }
}

//! Connections to backends: the system's, or in tests those of a script.

use std::fmt;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// An open connection.
pub(in crate::routing) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What [`Dial::dial`] returns.
pub(in crate::routing) type Dialled<'a> =
    Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send + 'a>>;

/// The only way from this module to the network. The hosts come from the file of routes, never from a
/// request.
pub(in crate::routing) trait Dial: fmt::Debug + Send + Sync {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Dialled<'a>;
}

/// The network of the system.
#[derive(Debug)]
pub(in crate::routing) struct SystemDial;

impl Dial for SystemDial {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Dialled<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

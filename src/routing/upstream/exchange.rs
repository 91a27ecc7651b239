//! One request and its answer, over a connection of its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER,
    USER_AGENT,
};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use url::Url;

use super::network::{Dial, Io};
use cutline_error::{Error, ErrorKind, Result};
use cutline_route::Failure;

/// The most bytes of an answer's headers.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// The most bytes of a whole answer. A caption has a few hundred.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// The most bytes of a line of a stream.
const MAX_LINE_BYTES: usize = 128 * 1024;

/// Where a backend is.
#[derive(Debug, Clone)]
pub(super) struct Address {
    encrypted: bool,
    host: String,
    port: u16,
    /// The value of `host`.
    authority: String,
    /// The path in front of those of the protocol, without a slash at the end and without `/v1`, which
    /// some people give and some do not.
    prefix: String,
}

impl Address {
    pub(super) fn parse(base: &str) -> Result<Self> {
        let wrong = || {
            Error::new(
                ErrorKind::Config,
                format!("{base} is no address of a backend; correct base_url"),
            )
        };
        let url = Url::parse(base).map_err(|error| wrong().with_source(error))?;
        let host = url.host_str().ok_or_else(wrong)?;
        let port = url.port_or_known_default().ok_or_else(wrong)?;
        let path = url.path().trim_end_matches('/');
        Ok(Self {
            encrypted: url.scheme() == "https",
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authority: url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
        })
    }
}

/// Sends requests to one backend.
pub(super) struct Client {
    address: Address,
    key: Option<String>,
    dial: Arc<dyn Dial>,
    tls: Option<TlsConnector>,
}

impl fmt::Debug for Client {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(address: Address, key: Option<String>, dial: Arc<dyn Dial>) -> Result<Self> {
        let tls = if address.encrypted { Some(crate::fetch::tls()?) } else { None };
        Ok(Self { address, key, dial, tls })
    }

    /// Sends JSON, and returns the body of an answer with the status 200. `on_sending` is called when there
    /// is a connection.
    pub(super) async fn post(
        &self,
        path: &str,
        body: Vec<u8>,
        on_sending: impl FnOnce() + Send,
    ) -> Result<Body, Failure> {
        let (response, connection) = self.send(Method::POST, path, body, on_sending).await?;
        match response.status().as_u16() {
            200 => Ok(Body { response, read: 0, waiting: Vec::new(), _connection: connection }),
            status => Err(Failure::Status(status, retry_after(response.headers()))),
        }
    }

    /// The status of the answer to a question; its body is not read.
    pub(super) async fn get(&self, path: &str) -> Result<u16, Failure> {
        let (response, _connection) = self.send(Method::GET, path, Vec::new(), || {}).await?;
        Ok(response.status().as_u16())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        on_sending: impl FnOnce() + Send,
    ) -> Result<(Response<Incoming>, JoinSet<()>), Failure> {
        let Address { host, port, authority, prefix, .. } = &self.address;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .header(HOST, authority)
            .header(USER_AGENT, concat!("cutline/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .header(CONNECTION, "close");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|_| Failure::Connect)?;
        let stream = self.dial.dial(host, *port).await.map_err(|_| Failure::Connect)?;
        let stream: Box<dyn Io> = match &self.tls {
            Some(tls) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| Failure::Connect)?;
                let stream = Box::pin(tls.connect(name, stream)).await;
                Box::new(stream.map_err(|_| Failure::Connect)?)
            }
            None => stream,
        };
        let (mut sender, connection) = http1::Builder::new()
            .max_header_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::Connect)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // The reader of the answer gets the same error.
            let _ = connection.await;
        });
        on_sending();
        // The connection broke, or what came is not HTTP.
        let response = sender.send_request(request).await.map_err(|_| Failure::BadAnswer)?;
        Ok((response, tasks))
    }
}

/// How long the backend wants to be left alone: whole seconds, as nearly all say it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An answer that arrives.
pub(super) struct Body {
    response: Response<Incoming>,
    read: usize,
    /// What has arrived beyond the last line.
    waiting: Vec<u8>,
    /// The task that reads the connection; it ends when this is dropped.
    _connection: JoinSet<()>,
}

impl Body {
    /// All of it.
    pub(super) async fn whole(mut self) -> Result<Vec<u8>, Failure> {
        while self.more(MAX_ANSWER_BYTES).await? {}
        Ok(self.waiting)
    }

    /// The next line without its end; `None` after the last one.
    pub(super) async fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.waiting.drain(..=end).collect();
                line.truncate(line.trim_ascii_end().len());
                return Ok(Some(line));
            }
            if !self.more(MAX_LINE_BYTES).await? {
                let rest = std::mem::take(&mut self.waiting);
                return Ok(Some(rest).filter(|rest| !rest.is_empty()));
            }
        }
    }

    /// Waits for more bytes; false at the end. At most `most` may wait to be read.
    async fn more(&mut self, most: usize) -> Result<bool, Failure> {
        while let Some(frame) = self.response.frame().await {
            // Trailers are no data.
            let Ok(chunk) = frame.map_err(|_| Failure::BadAnswer)?.into_data() else { continue };
            self.read = self.read.saturating_add(chunk.len());
            if self.read > 4 * MAX_ANSWER_BYTES || self.waiting.len() + chunk.len() > most {
                return Err(Failure::BadAnswer);
            }
            self.waiting.extend_from_slice(&chunk);
            return Ok(true);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_have_a_path_and_a_version() {
        for (base, host, authority, prefix) in [
            ("http://127.0.0.1:11434", "127.0.0.1", "127.0.0.1:11434", ""),
            ("https://api.example.com/v1", "api.example.com", "api.example.com", ""),
            ("http://[::1]:8000/proxy/v1/", "::1", "[::1]:8000", "/proxy"),
        ] {
            let address = Address::parse(base).unwrap();
            assert_eq!(
                (&*address.host, &*address.authority, &*address.prefix),
                (host, authority, prefix)
            );
        }
        assert_eq!(Address::parse("https://a.example").unwrap().port, 443);
    }
}

//! One request and its answer, over a connection that serves for nothing else. So there is no pool that
//! could mix up hosts, and nothing to switch off: no redirects, no cookies, no credentials.

use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, HeaderMap,
    LOCATION, USER_AGENT,
};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::Host;

use super::network::Connected;
use super::target::{Target, failed, invalid};
use super::unreachable;
use crate::captioner::{Budget, Permit, Photo, append, image_too_large};
use cutline_error::{Error, Result};
use cutline_image::ImageFormat;

/// The most bytes of an answer's headers.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// The most bytes that are received but not read yet.
const BUFFER_BYTES: usize = 64 * 1024;

/// After so many bytes, the format of an image is known.
const SIGNATURE_BYTES: usize = 4 * 1024;

/// Trusts the authorities that Mozilla trusts. A list in the binary is the same on every machine, and
/// the hub client uses it as well.
pub(crate) fn tls() -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    tls_with(roots)
}

pub(super) fn tls_with(roots: RootCertStore) -> Result<TlsConnector> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal("there is no version of TLS").with_source(error))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What a server answers.
pub(super) enum Answer {
    Image(Box<Download>),
    /// The value of `location`.
    Moved(Vec<u8>),
}

/// An image that is about to arrive.
pub(super) struct Download {
    response: Response<Incoming>,
    /// The task that reads the connection; it ends when this is dropped.
    _connection: JoinSet<()>,
}

/// Asks for `target` over `connected`.
///
/// # Errors
/// [`FetchFailed`](cutline_error::ErrorKind::FetchFailed).
pub(super) async fn ask(
    target: &Target,
    connected: Connected,
    tls: &TlsConnector,
) -> Result<Answer> {
    let stream = connected.stream;
    let (response, connection) = if target.is_encrypted() {
        let name = match target.host() {
            Host::Domain(name) => ServerName::try_from(name.clone()).map_err(unreachable)?,
            Host::Ipv4(ip) => ServerName::from(std::net::IpAddr::V4(*ip)),
            Host::Ipv6(ip) => ServerName::from(std::net::IpAddr::V6(*ip)),
        };
        let stream = Box::pin(tls.connect(name, stream)).await.map_err(unreachable)?;
        exchange(target, stream).await?
    } else {
        exchange(target, stream).await?
    };
    match response.status().as_u16() {
        200 => {
            if is_encoded(response.headers()) {
                return Err(failed(
                    "the server of the image sends it compressed although that was not asked for; \
                     send the image itself instead",
                ));
            }
            Ok(Answer::Image(Box::new(Download { response, _connection: connection })))
        }
        status @ (301 | 302 | 303 | 307 | 308) => match response.headers().get(LOCATION) {
            Some(location) => Ok(Answer::Moved(location.as_bytes().to_vec())),
            None => Err(wrong_status(status)),
        },
        status => Err(wrong_status(status)),
    }
}

fn wrong_status(status: u16) -> Error {
    failed(format!(
        "the server of the image answered with the status {status}; check that the address leads to \
         an image that everyone may read"
    ))
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|coding| {
        let coding = coding.as_bytes().trim_ascii();
        !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
    })
}

async fn exchange<S>(target: &Target, stream: S) -> Result<(Response<Incoming>, JoinSet<()>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::get(target.resource())
        .header(HOST, target.authority())
        .header(USER_AGENT, concat!("cutline/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "image/avif, image/webp, image/*;q=0.9, */*;q=0.5")
        .header(ACCEPT_ENCODING, "identity")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| {
            invalid("it has characters that no server understands").with_source(error)
        })?;
    let (mut sender, connection) = http1::Builder::new()
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(BUFFER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(unreachable)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // The reader of the answer gets the same error.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.map_err(unreachable)?;
    Ok((response, tasks))
}

impl Download {
    /// The image. Its bytes count against `budget` as they arrive, whatever length was announced. What
    /// is not an image is given up after a few of them.
    ///
    /// # Errors
    /// [`ImageTooLarge`](cutline_error::ErrorKind::ImageTooLarge) for more than `most` bytes,
    /// [`QueueFull`](cutline_error::ErrorKind::QueueFull) if there is no memory for them,
    /// [`UnsupportedFormat`](cutline_error::ErrorKind::UnsupportedFormat), or
    /// [`FetchFailed`](cutline_error::ErrorKind::FetchFailed).
    pub(super) async fn read(mut self, most: usize, budget: &Budget) -> Result<Photo> {
        if self.announced().is_some_and(|length| length > most as u64) {
            return Err(image_too_large(most));
        }
        let mut photo = Received { bytes: Vec::new(), permit: budget.take(0)?, is_image: false };
        while let Some(frame) = self.response.frame().await {
            // Trailers are no data.
            let Ok(chunk) = frame.map_err(broke_off)?.into_data() else { continue };
            photo.add(&chunk, most)?;
        }
        photo.finish()
    }

    fn announced(&self) -> Option<u64> {
        self.response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }
}

/// The part of an image that has arrived.
struct Received {
    bytes: Vec<u8>,
    permit: Permit,
    /// Its format was recognised.
    is_image: bool,
}

impl Received {
    fn add(&mut self, chunk: &[u8], most: usize) -> Result<()> {
        if chunk.len() > most - self.bytes.len() {
            return Err(image_too_large(most));
        }
        self.permit.grow(chunk.len() as u64)?;
        append(&mut self.bytes, chunk)?;
        if !self.is_image && self.bytes.len() >= SIGNATURE_BYTES {
            ImageFormat::of(&self.bytes)?;
            self.is_image = true;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Photo> {
        if !self.is_image {
            ImageFormat::of(&self.bytes)?;
        }
        self.bytes.shrink_to_fit();
        Ok(Photo::new(self.bytes, self.permit))
    }
}

/// The answer ended too early, or is not in the form that HTTP has.
fn broke_off(error: hyper::Error) -> Error {
    let failure = failed(
        "the image broke off before its end; send the request again, or send the image itself",
    );
    failure.with_source(error)
}

//! Images by URL, without becoming a way into the operator's network (server-side request forgery).
//!
//! One call fetches an image, or says why not:
//!
//! ```no_run
//! # use cutline::captioner::{Budget, Photo};
//! # use cutline::fetch::{FetchSettings, Fetcher, is_url};
//! # async fn image(reference: &str, fetcher: &Fetcher, budget: &Budget) -> cutline::error::Result<Photo> {
//! // The fetcher of the server is `AppState::fetcher`; a command makes one from its settings.
//! // Budget: `Captioner::budget`, or that of the decoders while the model is loading.
//! assert!(is_url(reference));
//! let photo = fetcher.fetch(reference, budget).await?;
//! # Ok(photo)
//! # }
//! ```
//!
//! [`Fetcher::fetch_all`] does the same for many images. Both check the setting `FETCH_URLS` themselves.
//! Dropping the future ends the transfer.
//!
//! What holds for every image:
//! - `target`: only http and https, without user names; parsed as browsers do, so that every spelling of
//!   an IP address is one;
//! - `hosts`, `address`: which hosts, ports and IP addresses may be reached. All addresses of a name
//!   are checked, and the connection is made to one that was checked, not to the name;
//! - a redirect is a new address: everything is checked again, three times at most;
//! - `exchange`: one connection for one request, which carries nothing of the client's;
//! - time, bytes and the number of transfers are limited, and bytes count against the budget for images
//!   as they arrive. The format is recognised from the bytes;
//! - `network`: the only way to names and sockets, replaced in tests.
//!
//! Names that do not exist, hosts that do not answer and addresses that are refused get the same
//! sentence, so answers do not tell what is in the operator's network.

mod address;
mod exchange;
mod hosts;
mod network;
mod target;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use url::Host;

use self::exchange::Answer;
pub(crate) use self::exchange::tls;
pub use self::hosts::{FetchHosts, NotHosts};
use self::network::{Connected, Network, SystemNetwork};
pub use self::target::URL_FIELD;
use self::target::{Target, failed, invalid};
use crate::captioner::{Budget, Photo};
use cutline_error::{Error, ErrorKind, Result};

/// The longest address in bytes.
pub const MAX_URL_BYTES: usize = 8 * 1024;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 3;

/// Images that are fetched at a time, for all clients together.
const MAX_TRANSFERS: usize = 32;

/// Images of one call that are fetched at a time, so that one batch leaves room for others.
const MAX_TRANSFERS_OF_ONE: usize = 8;

/// Addresses of a name that are tried, one after another.
const MAX_ATTEMPTS: usize = 4;

/// How long one of them may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where images may be fetched from, and within which limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchSettings {
    /// The hosts.
    pub sources: FetchSources,
    /// How long one image may take, with its redirects.
    pub timeout: Duration,
    /// The largest image in bytes.
    pub max_bytes: usize,
}

/// The hosts that images may be fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchSources {
    /// None.
    Off,
    /// All hosts of the public internet, at the ports 80 for http and 443 for https.
    Public,
    /// These hosts, which may be private ones.
    Listed(FetchHosts),
}

/// Whether `reference` is an address that [`Fetcher::fetch`] is meant for, rather than base64 or a `data:`
/// URI.
#[must_use]
pub fn is_url(reference: &str) -> bool {
    let reference = reference.trim_ascii_start().as_bytes();
    [&b"http:"[..], b"https:"].iter().any(|scheme| {
        reference.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}

/// Fetches images. Cheap to clone; clones share the limit of transfers.
#[derive(Debug, Clone)]
pub struct Fetcher {
    inner: Arc<FetcherInner>,
}

#[derive(Debug)]
struct FetcherInner {
    settings: FetchSettings,
    network: Box<dyn Network>,
    tls: Result<Tls>,
    transfers: Semaphore,
}

#[derive(Clone)]
struct Tls(TlsConnector);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Fetcher {
    /// A fetcher on the network of the system.
    #[must_use]
    pub fn new(settings: FetchSettings) -> Self {
        Self::on(Box::new(SystemNetwork::new()), exchange::tls(), settings)
    }

    fn on(network: Box<dyn Network>, tls: Result<TlsConnector>, settings: FetchSettings) -> Self {
        let transfers = Semaphore::new(MAX_TRANSFERS);
        let inner = FetcherInner { settings, network, tls: tls.map(Tls), transfers };
        Self { inner: Arc::new(inner) }
    }

    /// Fetches the image at `url`. Its bytes count against `budget`.
    ///
    /// # Errors
    /// - [`InvalidParameter`](ErrorKind::InvalidParameter) for the field `image_url`: the setting
    ///   `FETCH_URLS` does not allow it, or it is no address;
    /// - [`FetchFailed`](ErrorKind::FetchFailed): the image did not arrive;
    /// - [`ImageTooLarge`](ErrorKind::ImageTooLarge), [`UnsupportedFormat`](ErrorKind::UnsupportedFormat);
    /// - [`QueueFull`](ErrorKind::QueueFull): there is no memory for it, or too many others are being
    ///   fetched.
    pub async fn fetch(&self, url: &str, budget: &Budget) -> Result<Photo> {
        let one = Semaphore::new(1);
        self.fetch_within(url, budget, &one).await
    }

    /// Fetches the images at `urls`, several at a time. The results are in the same order.
    pub async fn fetch_all(&self, urls: Vec<String>, budget: &Budget) -> Vec<Result<Photo>> {
        let lost = || Err(Error::internal("the transfer of an image crashed"));
        let mut photos: Vec<Result<Photo>> = urls.iter().map(|_| lost()).collect();
        let together = Arc::new(Semaphore::new(MAX_TRANSFERS_OF_ONE));
        let mut running = JoinSet::new();
        for (index, url) in urls.into_iter().enumerate() {
            let (fetcher, budget, together) = (self.clone(), budget.clone(), Arc::clone(&together));
            running.spawn(
                async move { (index, fetcher.fetch_within(&url, &budget, &together).await) },
            );
        }
        while let Some(ended) = running.join_next().await {
            if let Ok((index, photo)) = ended {
                photos[index] = photo;
            }
        }
        photos
    }

    /// Fetches an image when `own` and the limit for all have a place for it.
    async fn fetch_within(&self, url: &str, budget: &Budget, own: &Semaphore) -> Result<Photo> {
        let FetcherInner { settings, transfers, .. } = &*self.inner;
        // Before anything waits.
        if settings.sources == FetchSources::Off {
            return Err(off());
        }
        let target = Target::parse(url.trim_ascii())?;
        self.check(&target)?;
        let patience = Instant::now() + settings.timeout * 2;
        let place = async |places| -> Result<SemaphorePermit<'_>> {
            let waiting = timeout_at(patience, Semaphore::acquire(places));
            let place = waiting.await.map_err(|_| busy())?;
            place.map_err(|error| Error::internal("no image is fetched").with_source(error))
        };
        let _own = place(own).await?;
        let _place = place(transfers).await?;
        // Boxed: this future is large, and every future around it would be as well.
        let work = Box::pin(self.follow(target, budget));
        match timeout(settings.timeout, work).await {
            Ok(photo) => photo,
            Err(_) => Err(too_slow(settings.timeout)),
        }
    }

    async fn follow(&self, mut target: Target, budget: &Budget) -> Result<Photo> {
        for _ in 0..=MAX_REDIRECTS {
            let connected = self.connect(&target).await?;
            let Tls(tls) = self.inner.tls.as_ref().map_err(Error::clone)?;
            match exchange::ask(&target, connected, tls).await? {
                Answer::Image(download) => {
                    return download.read(self.inner.settings.max_bytes, budget).await;
                }
                Answer::Moved(location) => {
                    let next = target.redirect(&location);
                    target =
                        next.and_then(|next| self.check(&next).map(|()| next)).map_err(led_away)?;
                }
            }
        }
        Err(failed(format!(
            "the address redirects more than {MAX_REDIRECTS} times; send the address of the image itself"
        )))
    }

    /// Checks what can be known about `target` without looking up its name.
    fn check(&self, target: &Target) -> Result<()> {
        match &self.inner.settings.sources {
            FetchSources::Off => Err(off()),
            FetchSources::Public if !target.has_default_port() => Err(invalid(
                "only the ports 80 for http and 443 for https are used; send an address without a \
                 port, or the image itself",
            )),
            FetchSources::Public => Ok(()),
            FetchSources::Listed(hosts) if hosts.contain(target) => Ok(()),
            FetchSources::Listed(_) => Err(invalid(
                "this server fetches images only from the hosts and ports that its operator lists in \
                 FETCH_HOSTS; send the image itself",
            )),
        }
    }

    /// Whether a host at `ip` may be reached.
    fn may_reach(&self, ip: IpAddr) -> bool {
        match self.inner.settings.sources {
            FetchSources::Off => false,
            FetchSources::Public => address::is_public(ip),
            FetchSources::Listed(_) => address::is_listable(ip),
        }
    }

    /// Connects to the host of `target`. Its name is looked up once; if one of its addresses may not be
    /// reached, none is tried.
    async fn connect(&self, target: &Target) -> Result<Connected> {
        let network = &self.inner.network;
        let addresses = match target.host() {
            Host::Ipv4(ip) => vec![IpAddr::V4(*ip)],
            Host::Ipv6(ip) => vec![IpAddr::V6(*ip)],
            Host::Domain(name) => network.resolve(name).await.map_err(unreachable)?,
        };
        if let Some(ip) = addresses.iter().find(|ip| !self.may_reach(**ip)) {
            return Err(self.refused(target, *ip));
        }
        for ip in addresses.into_iter().take(MAX_ATTEMPTS) {
            let connecting = network.connect(SocketAddr::new(ip, target.port()));
            let Ok(Ok(connected)) = timeout(CONNECT_TIMEOUT, connecting).await else { continue };
            // A public address of this machine leads to services that need not be public.
            if connected.is_own && self.inner.settings.sources == FetchSources::Public {
                return Err(self.refused(target, ip));
            }
            return Ok(connected);
        }
        Err(unreachable("no address of the host answers"))
    }

    /// The refusal to connect. Only the log tells the reason.
    fn refused(&self, target: &Target, ip: IpAddr) -> Error {
        tracing::debug!(host = %target.host(), %ip, "an image is not fetched from this address");
        unreachable("the address may not be reached")
    }
}

fn off() -> Error {
    Error::parameter(
        URL_FIELD,
        "this server fetches no images; send the image itself, or ask the operator of the server to \
         set FETCH_URLS",
    )
}

/// The error for all hosts that do not answer, exist or may not be reached.
fn unreachable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let error = failed(
        "the server of the image cannot be reached, or may not be; check the address, or send the \
         image itself",
    );
    error.with_source(cause)
}

/// The error for a redirect to an address that may not be fetched.
fn led_away(cause: Error) -> Error {
    let error = failed(
        "the address redirects to another that is not fetched; send the address of the image itself",
    );
    error.with_source(cause)
}

fn too_slow(limit: Duration) -> Error {
    failed(format!(
        "the image did not arrive within {} s; send the image itself, or an address that answers \
         faster",
        limit.as_secs_f64()
    ))
}

fn busy() -> Error {
    let error = Error::new(
        ErrorKind::QueueFull,
        "the server is fetching too many images; try again a little later",
    );
    error.with_retry_after(Duration::from_secs(5))
}

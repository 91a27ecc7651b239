//! The address of an image: which ones are understood at all, and where a redirect leads.

use url::{Host, Position, Url};

use cutline_error::{Error, ErrorKind, Result};

/// The name of the field that holds the address, in every request.
pub const URL_FIELD: &str = "image_url";

/// An address that can be fetched, if its host may be.
#[derive(Debug, Clone)]
pub(super) struct Target {
    url: Url,
    /// Without the dot that may follow a name.
    host: Host,
    port: u16,
}

impl Target {
    /// Reads an address as browsers do: `http://0x7f.1` is 127.0.0.1.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter) for the field `image_url`.
    pub(super) fn parse(address: &str) -> Result<Self> {
        if address.len() > super::MAX_URL_BYTES {
            let most = super::MAX_URL_BYTES;
            return Err(invalid(format!("it is longer than {most} bytes; send a shorter address")));
        }
        let url = Url::parse(address).map_err(|error| {
            invalid(format!(
                "it is not an address ({error}); send one such as https://example.com/cat.jpg"
            ))
        })?;
        Self::of(url)
    }

    /// The address to which this one redirects.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); also if the way there would lose its encryption.
    pub(super) fn redirect(&self, location: &[u8]) -> Result<Self> {
        let location = std::str::from_utf8(location).ok();
        let location = location.filter(|text| text.len() <= super::MAX_URL_BYTES);
        let url = location.and_then(|location| self.url.join(location).ok());
        let target = Self::of(url.ok_or_else(|| invalid("it redirects to no address"))?)?;
        if self.is_encrypted() && !target.is_encrypted() {
            return Err(invalid("it redirects from https to http"));
        }
        Ok(target)
    }

    fn of(url: Url) -> Result<Self> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid(
                "only http and https are fetched; send such an address, or the image itself",
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("it has a user name or password; send an address without them"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => {
                Host::Domain(name.strip_suffix('.').unwrap_or(name).to_owned())
            }
            Some(Host::Ipv4(ip)) => Host::Ipv4(ip),
            Some(Host::Ipv6(ip)) => Host::Ipv6(ip),
            None => return Err(invalid("it has no host; send an address with one")),
        };
        let port = url.port_or_known_default().filter(|port| *port != 0);
        let port = port.ok_or_else(|| invalid("its port does not exist; send another"))?;
        Ok(Self { url, host, port })
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether the port is 80 for http, or 443 for https.
    pub(super) fn has_default_port(&self) -> bool {
        self.url.port().is_none()
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// The value of the header `host`.
    pub(super) fn authority(&self) -> &str {
        &self.url[Position::BeforeHost..Position::AfterPort]
    }

    /// The path and the query. The fragment stays here.
    pub(super) fn resource(&self) -> &str {
        &self.url[Position::BeforePath..Position::AfterQuery]
    }
}

/// The refusal of an address because of how it is written.
pub(super) fn invalid(why: impl std::fmt::Display) -> Error {
    Error::parameter(URL_FIELD, format!("the address of the image cannot be used: {why}"))
}

/// The failure of an address that could be fetched.
pub(super) fn failed(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::FetchFailed, detail)
}

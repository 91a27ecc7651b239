//! Who may use the server, from which origins, and how often.

use std::fmt;
use std::fs;
use std::net::Ipv6Addr;
use std::num::NonZeroU32;

use ureq::http::Uri;

use crate::text;

/// More requests per minute than this server could answer on any machine.
pub(super) const MAX_RATE: u32 = 1_000_000;

/// Who may use the server, from which origins, and how often.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProtectionSettings {
    /// Each request must send one of them; if there is none, no key is needed.
    pub keys: ApiKeys,
    /// Endpoints that need no key.
    pub public: PublicEndpoints,
    /// Origins whose pages may use the server.
    pub cors: CorsOrigins,
    /// How many requests one client may send; `None` for no limit.
    pub rate: Option<RateLimit>,
    /// Reverse proxies in front of the server whose `X-Forwarded-For` header is trusted.
    pub proxies: usize,
}

/// API keys. Only their hashes are stored, so nothing can print a key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<blake3::Hash>);

impl ApiKeys {
    /// Hashes `keys`.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self(keys.into_iter().map(|key| blake3::hash(key.as_bytes())).collect())
    }

    /// These keys and `others`.
    #[must_use]
    pub(super) fn with(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The index of the key that equals `given`. The time taken reveals nothing about the keys: all
    /// hashes are compared, and blake3 compares any two in constant time.
    #[must_use]
    pub fn find(&self, given: &[u8]) -> Option<usize> {
        let given = blake3::hash(given);
        let mut found = None;
        for (number, key) in self.0.iter().enumerate() {
            if *key == given {
                found = Some(number);
            }
        }
        found
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

/// Endpoints that need no key although keys are set. The page and the probes of an orchestrator never
/// need one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicEndpoints {
    /// `/health`, which reports the model's name, the queue and the last error.
    pub health: bool,
    /// `/metrics`, which shows how much the server is used.
    pub metrics: bool,
    /// The OpenAPI document and its viewer.
    pub docs: bool,
}

impl Default for PublicEndpoints {
    fn default() -> Self {
        Self { health: true, metrics: false, docs: true }
    }
}

/// Origins whose pages may read the server's answers. Browsers enforce this.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CorsOrigins {
    /// Only the server's own page.
    #[default]
    None,
    /// Every origin.
    Any,
    /// These origins, written as browsers send them.
    List(Vec<String>),
}

/// How many requests one client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per minute, spread evenly.
    pub per_minute: NonZeroU32,
    /// Requests that a client may send at once after a pause.
    pub burst: NonZeroU32,
}

/// Parses `API_KEYS`.
pub(super) fn api_keys(text: &str) -> Result<ApiKeys, String> {
    usable(text.split(',').map(str::trim).filter(|key| !key.is_empty()))
}

/// Reads the file of `API_KEYS_FILE`.
pub(super) fn api_keys_file(path: &str) -> Result<ApiKeys, String> {
    let bytes = fs::read(path).map_err(|error| {
        format!("the file cannot be read ({error}); give a file with one key per line")
    })?;
    let bytes = text::without_mark(&bytes).map_err(|why| format!("the file {why}"))?;
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(str::trim);
    usable(lines.filter(|line| !line.is_empty() && !line.starts_with('#')))
}

/// The keys, if there are any: someone who names an empty list believes that the server is closed.
/// Messages never contain a key.
fn usable<'t>(keys: impl Iterator<Item = &'t str>) -> Result<ApiKeys, String> {
    let keys: Vec<&str> = keys.collect();
    if keys.is_empty() {
        return Err("it contains no key; add one, or leave the setting out".to_owned());
    }
    match keys.iter().position(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        None => Ok(ApiKeys::new(keys)),
        Some(at) => Err(format!(
            "key {} in it has characters other than visible ASCII and could not be sent in a \
             header; use another key",
            at + 1
        )),
    }
}

/// Parses `PUBLIC_ENDPOINTS`.
pub(super) fn public_endpoints(text: &str) -> Result<PublicEndpoints, String> {
    let mut public = PublicEndpoints { health: false, metrics: false, docs: false };
    if text.eq_ignore_ascii_case("none") {
        return Ok(public);
    }
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word.to_ascii_lowercase().as_str() {
            "health" => public.health = true,
            "metrics" => public.metrics = true,
            "docs" => public.docs = true,
            _ => return Err("give none, or some of health, metrics, docs".to_owned()),
        }
    }
    Ok(public)
}

/// Parses `CORS_ALLOW_ORIGINS`.
pub(super) fn cors_origins(text: &str) -> Result<CorsOrigins, String> {
    let origins: Vec<&str> =
        text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
    if origins == ["*"] {
        return Ok(CorsOrigins::Any);
    }
    if origins.is_empty() || !origins.iter().all(|origin| is_origin(origin)) {
        return Err("give * alone, or origins as browsers send them: https://app.example.com or \
                    http://localhost:3000, separated by commas, in lower case, without a path, a \
                    slash at the end or the scheme's default port"
            .to_owned());
    }
    Ok(CorsOrigins::List(origins.into_iter().map(str::to_owned).collect()))
}

/// Whether a browser could send `text` as `Origin`. Anything else would never match, except `null`,
/// which every sandboxed page sends.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else { return false };
    let plain = |text: &str, marks: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || marks.contains(c);
        !text.is_empty() && text.chars().all(fits)
    };
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        // Browsers send the shortest form.
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok_and(|address| address.to_string() == ip),
        None => plain(host, "-._"),
    };
    let port = match (scheme, uri.port_u16()) {
        ("http", Some(80)) | ("https", Some(443)) | (_, Some(0)) => return false,
        (_, Some(port)) => format!(":{port}"),
        (_, None) => String::new(),
    };
    // Rules out capitals, paths, user names and other spellings of the port.
    plain(scheme, "+-.") && host_fits && text == format!("{scheme}://{host}{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_whole_or_not_at_all() {
        let keys = ApiKeys::new(["first-key", "second-key"]);
        assert_eq!(keys.find(b"first-key"), Some(0));
        assert_eq!(keys.find(b"second-key"), Some(1));
        for wrong in ["", "first", "first-kez", "first-key ", "FIRST-KEY", "first-key,second-key"] {
            assert_eq!(keys.find(wrong.as_bytes()), None, "{wrong}");
        }
        assert!(!keys.is_empty() && ApiKeys::default().is_empty());
        assert_eq!(ApiKeys::default().find(b""), None);
        assert_eq!(format!("{keys:?}"), "ApiKeys(2)");
    }

    #[test]
    fn origins_are_written_as_browsers_send_them() {
        for origin in [
            "https://example.com",
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "http://[::1]:5173",
            "https://[2001:db8::1]",
            "https://a-b.example.co.uk:8443",
            "chrome-extension://abcdefgh",
            "https://example.com:80",
        ] {
            assert!(is_origin(origin), "{origin}");
        }
        for text in [
            "null",
            "example.com",
            "https://",
            "https://example.com/",
            "https://example.com/path",
            "https://Example.com",
            "HTTPS://example.com",
            "https://example.com:443",
            "http://example.com:80",
            "http://example.com:",
            "http://example.com:080",
            "http://example.com:70000",
            "https://*.example.com",
            "https://user@example.com",
            "https://example.com?x",
            "https://exa mple.com",
            "http://[::1",
            "http://[0:0:0:0:0:0:0:1]",
            "://example.com",
            "*",
        ] {
            assert!(!is_origin(text), "{text}");
        }
    }
}

//! Who may use the server, from which sites, and how often.

use std::fmt;
use std::fs;
use std::num::NonZeroU32;

use super::parse::Reader;
use cutline_error::Result;

/// More requests a minute than this server could answer on any machine.
const MAX_RATE: u32 = 1_000_000;

/// More proxies than anybody has one behind the other.
const MAX_PROXIES: usize = 16;

/// Who may use the server, from which sites, and how often.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProtectionSettings {
    /// A request must have one of them; with none, everybody may ask.
    pub keys: ApiKeys,
    /// What needs no key.
    pub public: PublicEndpoints,
    /// Sites whose pages may use the server.
    pub cors: CorsOrigins,
    /// How often one client may ask; `None` for as often as it likes.
    pub rate: Option<RateLimit>,
    /// Proxies in front of the server that say in `X-Forwarded-For` for whom they ask.
    pub proxies: usize,
}

/// API keys, of which only hashes are kept: nothing can show them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<blake3::Hash>);

impl ApiKeys {
    /// These keys.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self(keys.into_iter().map(|key| blake3::hash(key.as_bytes())).collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which of them `given` is. The time that this takes says nothing of the keys: hashes are
    /// compared, all of them, and blake3's comparison takes as long for any two.
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

/// What is answered without a key where keys are set, beside the page and the probes of an
/// orchestrator, which never need one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicEndpoints {
    /// `/health`, which tells the model's name, the queue and the last error.
    pub health: bool,
    /// `/metrics`, which tells how much the server is used.
    pub metrics: bool,
    /// The API's description and its documentation.
    pub docs: bool,
}

impl Default for PublicEndpoints {
    fn default() -> Self {
        Self { health: true, metrics: false, docs: true }
    }
}

/// Sites whose pages may read the server's answers, as browsers enforce it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CorsOrigins {
    /// None but the server's own page.
    #[default]
    None,
    /// All.
    Any,
    /// Those of these origins, written as browsers send them.
    List(Vec<String>),
}

/// How often one client may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests a minute, evenly over the minute.
    pub per_minute: NonZeroU32,
    /// Requests that a client who was silent may send at once.
    pub burst: NonZeroU32,
}

pub(super) fn protection(read: &Reader<'_>) -> Result<ProtectionSettings> {
    Ok(ProtectionSettings {
        keys: keys(read)?,
        public: public(read)?,
        cors: cors(read)?,
        rate: rate(read)?,
        proxies: read.number("TRUSTED_PROXY_COUNT", 0, MAX_PROXIES)?,
    })
}

/// The keys of `API_KEYS` and of `API_KEYS_FILE`.
fn keys(read: &Reader<'_>) -> Result<ApiKeys> {
    let listed = read.text("API_KEYS")?;
    let mut keys = Vec::new();
    if let Some(text) = &listed {
        let found = text.split(',').map(str::trim).filter(|key| !key.is_empty());
        keys.extend(checked(read, "API_KEYS", found)?);
    }
    let Some(path) = read.text("API_KEYS_FILE")? else { return Ok(ApiKeys::new(keys)) };
    let text = fs::read_to_string(path).map_err(|error| {
        let remedy = format!("the file cannot be read ({error}); give one with a key in each line");
        read.unusable("API_KEYS_FILE", &remedy)
    })?;
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let found = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    keys.extend(checked(read, "API_KEYS_FILE", found)?);
    Ok(ApiKeys::new(keys))
}

/// `keys`, if they can be used. None at all is no way to say that there shall be none: whoever
/// names a list without a key believes the server to be closed.
fn checked<'t>(
    read: &Reader<'_>,
    name: &str,
    keys: impl Iterator<Item = &'t str>,
) -> Result<Vec<&'t str>> {
    let keys: Vec<&str> = keys.collect();
    if keys.is_empty() {
        return Err(read.unusable(name, "there is no key in it; add one, or leave it unset"));
    }
    // The key itself is never part of the sentence.
    match keys.iter().position(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        None => Ok(keys),
        Some(at) => {
            let remedy = format!(
                "key {} of it has something else than visible ASCII characters, and could not be \
                 sent in a header; give another one",
                at + 1
            );
            Err(read.unusable(name, &remedy))
        }
    }
}

fn public(read: &Reader<'_>) -> Result<PublicEndpoints> {
    let text = read.required("PUBLIC_ENDPOINTS")?;
    let mut public = PublicEndpoints { health: false, metrics: false, docs: false };
    if text.eq_ignore_ascii_case("none") {
        return Ok(public);
    }
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word.to_ascii_lowercase().as_str() {
            "health" => public.health = true,
            "metrics" => public.metrics = true,
            "docs" => public.docs = true,
            _ => {
                return Err(read.unusable(
                    "PUBLIC_ENDPOINTS",
                    "give none, or some of health, metrics, docs, separated by commas",
                ));
            }
        }
    }
    Ok(public)
}

fn cors(read: &Reader<'_>) -> Result<CorsOrigins> {
    const NAME: &str = "CORS_ALLOW_ORIGINS";
    let Some(text) = read.text(NAME)? else { return Ok(CorsOrigins::None) };
    let origins: Vec<&str> =
        text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
    if origins == ["*"] {
        return Ok(CorsOrigins::Any);
    }
    if origins.is_empty() || !origins.iter().all(|origin| is_origin(origin)) {
        return Err(read.unusable(
            NAME,
            "give * alone, or origins as browsers send them, separated by commas: \
             https://app.example.com or http://localhost:3000, in small letters, without a path, \
             a slash at the end or the scheme's own port",
        ));
    }
    Ok(CorsOrigins::List(origins.into_iter().map(str::to_owned).collect()))
}

/// Whether a browser could send `text` as `Origin`. Anything else would never be equal to one, and
/// `null` is what every sandboxed page sends.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
    // The colons of an address in brackets belong to it.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host_fits = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| {
            ip.parse::<std::net::Ipv6Addr>().is_ok_and(|address| address.to_string() == ip)
        }),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c))
        }
    };
    let port_fits = port.is_none_or(|port| {
        let number = port.parse::<u16>().unwrap_or(0);
        let own = match scheme {
            "http" => 80,
            "https" => 443,
            _ => 0,
        };
        number != 0 && number != own && number.to_string() == port
    });
    scheme_fits && host_fits && port_fits
}

fn rate(read: &Reader<'_>) -> Result<Option<RateLimit>> {
    let per_minute = read.number("RATE_LIMIT", 0, MAX_RATE)?;
    let burst = read.optional_number("RATE_LIMIT_BURST", 1, MAX_RATE)?;
    let Some(per_minute) = NonZeroU32::new(per_minute) else {
        return match burst {
            None => Ok(None),
            Some(_) => {
                Err(read.unusable("RATE_LIMIT_BURST", "it needs a RATE_LIMIT; set that too"))
            }
        };
    };
    let burst = burst.and_then(NonZeroU32::new).unwrap_or(per_minute);
    Ok(Some(RateLimit { per_minute, burst }))
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

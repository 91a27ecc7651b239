//! The hosts that an operator lists in `FETCH_HOSTS`.

use std::fmt;
use std::str::FromStr;

use url::Host;

use super::target::Target;

/// Hosts that images may be fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchHosts(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    host: Pattern,
    /// `None` for the default port of the scheme.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// This host.
    Is(Host),
    /// Every host whose name ends with a dot and this name.
    Below(String),
}

impl FetchHosts {
    /// Whether `target` is on one of the hosts, at the port that is listed.
    pub(super) fn contain(&self, target: &Target) -> bool {
        self.0.iter().any(|entry| {
            let port =
                entry.port.map_or_else(|| target.has_default_port(), |port| port == target.port());
            port && entry.host.matches(target.host())
        })
    }
}

impl Pattern {
    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Is(own), host) => own == host,
            (Self::Below(own), Host::Domain(name)) => {
                let below = name.strip_suffix(own.as_str()).and_then(|name| name.strip_suffix('.'));
                below.is_some_and(|name| !name.is_empty())
            }
            (Self::Below(_), _) => false,
        }
    }
}

/// What [`FetchHosts`] are parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotHosts;

impl fmt::Display for NotHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "give hosts separated by commas, each with a port if it is not that of the scheme, such as \
             photos.example.com, *.example.com, 192.168.1.5:9000 or [fd12::5]:9000",
        )
    }
}

impl std::error::Error for NotHosts {}

impl FromStr for FetchHosts {
    type Err = NotHosts;

    fn from_str(text: &str) -> Result<Self, NotHosts> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let entries: Vec<Entry> = entries.map(str::parse).collect::<Result<_, _>>()?;
        if entries.is_empty() { Err(NotHosts) } else { Ok(Self(entries)) }
    }
}

impl FromStr for Entry {
    type Err = NotHosts;

    fn from_str(text: &str) -> Result<Self, NotHosts> {
        let (host, port) = match text.rsplit_once(':') {
            // A colon inside brackets belongs to the address.
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (host, Some(port.ok_or(NotHosts)?))
            }
            _ => (text, None),
        };
        let parse = |host: &str| match Host::parse(host) {
            // As in addresses, which are compared without it as well.
            Ok(Host::Domain(name)) => {
                let name = name.strip_suffix('.').unwrap_or(&name);
                if name.is_empty() || name.contains('*') {
                    Err(NotHosts)
                } else {
                    Ok(Host::Domain(name.to_owned()))
                }
            }
            Ok(address) => Ok(address),
            Err(_) => Err(NotHosts),
        };
        let host = match host.strip_prefix("*.") {
            None => Pattern::Is(parse(host)?),
            Some(host) => match parse(host)? {
                Host::Domain(name) => Pattern::Below(name),
                _ => return Err(NotHosts),
            },
        };
        Ok(Self { host, port })
    }
}

//! Checks API keys and the rate of requests, before a body is read.
//!
//! Routes that are not declared open need a key, so a new route is protected by default.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use cutline_library::Scope;

use super::connection::Connection;
use super::error::Failure;
use super::held::HeldBody;
use super::limits;
use super::observe::StreamResult;
use super::rate::{ClientId, Limiter};
use super::state::AppState;
use crate::accounts::{Accounts, KeyAccount, Visit};
use crate::captioner::{Account, charged_to};
use crate::config::{ApiKeys, ProtectionSettings, PublicEndpoints};
use cutline_error::{Error, ErrorKind, Result};

/// The alternative to `Authorization: Bearer`.
pub(super) const API_KEY: &str = "x-api-key";

/// The subprotocol that carries a key.
const KEY_PROTOCOL: &[u8] = b"cutline.key.";

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The layer that refuses requests, and charges others to the account of their key.
pub(super) async fn check(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let client = match state.guard().admit(&request) {
        Ok(client) => client,
        Err(refused) => return refused.into_response(),
    };
    let Client::Account(account) = &client else {
        request.extensions_mut().insert(client);
        return next.run(request).await;
    };
    let account = Arc::clone(account);
    let visit = match state.guard().visit(&request, &account) {
        Ok(visit) => visit,
        Err(error) => return Refused { error, account: Some(account) }.into_response(),
    };
    request.extensions_mut().insert(client);
    let payer = Arc::clone(&account) as Arc<dyn Account>;
    let mut response = charged_to(payer, next.run(request)).await;
    limits::insert(response.headers_mut(), &account.standings());
    // A stream is in progress until its end.
    if response.extensions().get::<StreamResult>().is_some() {
        response = response.map(|body| Body::new(HeldBody::new(body, visit)));
    }
    response
}

/// Who sends a request that was admitted; an extension of it.
#[derive(Debug, Clone)]
pub(super) enum Client {
    /// The holder of a key of the library.
    Account(Arc<KeyAccount>),
    /// Somebody else.
    Other(ClientId),
}

impl Client {
    /// The account of the key.
    pub(super) fn account(&self) -> Option<&Arc<KeyAccount>> {
        match self {
            Self::Account(account) => Some(account),
            Self::Other(_) => None,
        }
    }

    /// Whether it may do what only some may: the keys of the settings may do everything.
    pub(super) fn may(&self, scope: Scope) -> bool {
        match self {
            Self::Account(account) => account.has(scope),
            Self::Other(id) => matches!(id, ClientId::Key(_)),
        }
    }
}

/// Why a request is refused, and the key that it came with.
struct Refused {
    error: Error,
    account: Option<Arc<KeyAccount>>,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, account: None }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = Failure(self.error).into_response();
        if let Some(account) = self.account {
            limits::insert(response.headers_mut(), &account.standings());
        }
        response
    }
}

/// The key of a request.
enum Found {
    /// The server has no keys.
    None,
    /// One of the settings, by its number.
    Configured(usize),
    /// One of the library.
    Account(Arc<KeyAccount>),
}

/// Decides whether a request may be made.
pub(super) struct Guard {
    keys: ApiKeys,
    /// The keys of the library, if there is one.
    accounts: OnceLock<Accounts>,
    public: PublicEndpoints,
    limiter: Option<Limiter>,
    proxies: usize,
}

impl Guard {
    pub(super) fn new(settings: &ProtectionSettings) -> Self {
        Self {
            keys: settings.keys.clone(),
            accounts: OnceLock::new(),
            public: settings.public,
            limiter: settings.rate.map(Limiter::new),
            proxies: settings.proxies,
        }
    }

    /// Knows the keys of a library from now on. Only the first call has an effect.
    pub(super) fn manage(&self, accounts: Accounts) {
        let _ = self.accounts.set(accounts);
    }

    /// The keys of the library, if there is one.
    pub(super) fn accounts(&self) -> Option<&Accounts> {
        self.accounts.get()
    }

    /// Whether requests need a key.
    pub(super) fn needs_key(&self) -> bool {
        !self.keys.is_empty() || self.accounts().is_some_and(Accounts::any)
    }

    /// Who sends the request. An account has not counted it yet.
    ///
    /// [`Unauthorized`](ErrorKind::Unauthorized), [`Forbidden`](ErrorKind::Forbidden),
    /// [`InsufficientScope`](ErrorKind::InsufficientScope) or [`RateLimited`](ErrorKind::RateLimited) if
    /// the request is refused.
    fn admit(&self, request: &Request) -> Result<Client, Refused> {
        // Browsers send preflights without a key, and no other request uses this method.
        if request.method() == Method::OPTIONS {
            return Ok(Client::Other(self.address(request)));
        }
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let access = super::access(request.method(), route.unwrap_or(""));
        match self.key(request.headers()) {
            Err(_) if access.is_open(self.public) => Ok(Client::Other(self.address(request))),
            // Wrong keys count as well, so that guessing is slow.
            Err(refusal) => {
                self.take(&self.address(request))?;
                Err(refusal.into())
            }
            Ok(Found::Account(account)) => match account.check(access.scope()) {
                Err(_) if access.is_open(self.public) => Ok(Client::Other(self.address(request))),
                Err(error) => Err(Refused { error, account: Some(account) }),
                Ok(()) => Ok(Client::Account(account)),
            },
            Ok(Found::Configured(number)) => {
                self.counted(access, Client::Other(ClientId::Key(number)))
            }
            Ok(Found::None) => self.counted(access, Client::Other(self.address(request))),
        }
    }

    fn counted(&self, access: Access, client: Client) -> Result<Client, Refused> {
        if access.is_counted() {
            self.count(&client)?;
        }
        Ok(client)
    }

    /// Counts a request of an account, if requests for its route are counted.
    fn visit(&self, request: &Request, account: &Arc<KeyAccount>) -> Result<Option<Visit>> {
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        if !super::access(request.method(), route.unwrap_or("")).is_counted() {
            return Ok(None);
        }
        self.count(&Client::Account(Arc::clone(account)))
    }

    /// Who sends a request that was admitted.
    pub(super) fn client(&self, request: &Request) -> Client {
        let known = request.extensions().get::<Client>().cloned();
        known.unwrap_or_else(|| Client::Other(self.address(request)))
    }

    /// Counts a request of `client`. It is in progress until the result is dropped.
    ///
    /// # Errors
    /// [`RateLimited`](ErrorKind::RateLimited); [`Forbidden`](ErrorKind::Forbidden) if the key has ended
    /// since it was admitted.
    pub(super) fn count(&self, client: &Client) -> Result<Option<Visit>> {
        match client {
            Client::Account(account) => {
                if !account.limits_requests() {
                    self.take(&ClientId::Account(account.id()))?;
                }
                account.enter().map(Some)
            }
            Client::Other(id) => self.take(id).map(|()| None),
        }
    }

    fn take(&self, client: &ClientId) -> Result<()> {
        self.limiter.as_ref().map_or(Ok(()), |limiter| limiter.take(client))
    }

    /// The request's key.
    fn key(&self, headers: &HeaderMap) -> Result<Found> {
        if !self.needs_key() {
            return Ok(Found::None);
        }
        let mut given = keys(headers).peekable();
        if given.peek().is_none() {
            return Err(Error::new(
                ErrorKind::Unauthorized,
                "this server requires an API key; send one as `Authorization: Bearer KEY` or as \
                 `x-api-key: KEY`",
            ));
        }
        let find = |key: &[u8]| {
            let configured = self.keys.find(key).map(Found::Configured);
            configured.or_else(|| self.accounts()?.find(key).map(Found::Account))
        };
        given.find_map(|key| find(&key)).ok_or_else(|| {
            Error::new(
                ErrorKind::Forbidden,
                "this server does not know the API key; check it, or ask the operator of the server \
                 for one",
            )
        })
    }

    /// The client by its address, for requests without a key.
    fn address(&self, request: &Request) -> ClientId {
        let forwarded =
            self.proxies.checked_sub(1).and_then(|hop| forwarded(request.headers(), hop));
        let peer = || request.extensions().get::<ConnectInfo<Connection>>().map(|c| c.0.peer());
        ClientId::Address(forwarded.or_else(peer).map(client_network))
    }
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody: the page with its files, and the probes of an orchestrator.
    Open,
    /// Everybody, if `PUBLIC_ENDPOINTS` lists `health`.
    Health,
    /// Everybody, if `PUBLIC_ENDPOINTS` lists `metrics`.
    Metrics,
    /// Everybody, if `PUBLIC_ENDPOINTS` lists `docs`.
    Docs,
    /// Clients with a key, if there are keys. Their number is not limited: a page of the gallery has a
    /// hundred pictures.
    Picture,
    /// Clients with any key, if there are keys; rate limited.
    Key,
    /// Clients with a key of this scope, if there are keys; rate limited.
    Scope(Scope),
}

impl Access {
    /// Clients that may ask for captions.
    pub(super) const CAPTION: Self = Self::Scope(Scope::Caption);

    /// The scope that a key must have.
    fn scope(self) -> Option<Scope> {
        match self {
            Self::Scope(scope) => Some(scope),
            Self::Picture => Some(Scope::LibraryRead),
            Self::Open | Self::Health | Self::Metrics | Self::Docs | Self::Key => None,
        }
    }

    /// Whether requests count.
    fn is_counted(self) -> bool {
        matches!(self, Self::Key | Self::Scope(_))
    }

    fn is_open(self, public: PublicEndpoints) -> bool {
        match self {
            Self::Open => true,
            Self::Health => public.health,
            Self::Metrics => public.metrics,
            Self::Docs => public.docs,
            Self::Picture | Self::Key | Self::Scope(_) => false,
        }
    }
}

/// The keys in a request. Other schemes of `Authorization` are ignored; they may be for a proxy.
fn keys(headers: &HeaderMap) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let value = value.as_bytes();
        let (scheme, key) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
        scheme.eq_ignore_ascii_case(b"bearer").then_some(key)
    });
    let own = headers.get_all(API_KEY).iter().map(|value| value.as_bytes());
    let own = bearer.chain(own).map(<[u8]>::trim_ascii).map(Cow::Borrowed);
    own.chain(protocol_keys(headers)).filter(|key| !key.is_empty())
}

/// The keys among the subprotocols of a WebSocket, in base64url: pages can set no other header.
fn protocol_keys(headers: &HeaderMap) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let protocols = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let encoded = protocols.filter_map(|one| one.trim_ascii().strip_prefix(KEY_PROTOCOL));
    encoded.filter_map(|key| URL_SAFE_NO_PAD.decode(key).ok()).map(Cow::Owned)
}

/// The address that a trusted proxy has recorded; `hop` 0 is the proxy that is connected to us.
/// Each proxy appends an address, so entries that the client sent come first and are ignored.
fn forwarded(headers: &HeaderMap, hop: usize) -> Option<IpAddr> {
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    let mut addresses = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    address(std::str::from_utf8(addresses.nth(hop)?.trim_ascii()).ok()?)
}

/// Parses an address as proxies write it: alone, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
}

/// What one client controls: a single IPv4 address, or a /64 network of IPv6.
fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;
    use crate::http::access;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let header = |&(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(str::as_bytes(value)).unwrap())
        };
        lines.iter().map(header).collect()
    }

    #[test]
    fn keys_are_read_from_both_headers() {
        for (lines, expected) in [
            (&[("authorization", "Bearer abc")][..], &["abc"][..]),
            (&[("authorization", "bearer  abc ")], &["abc"]),
            (&[("authorization", "BEARER a b")], &["a b"]),
            (&[("x-api-key", " abc")], &["abc"]),
            (&[("x-api-key", "Bearer abc")], &["Bearer abc"]),
            (
                &[("x-api-key", "b"), ("authorization", "Bearer a"), ("x-api-key", "c")],
                &["a", "b", "c"],
            ),
            (&[("authorization", "Basic YTpi"), ("x-api-key", "a")], &["a"]),
            (&[("authorization", "Basic YTpi")], &[]),
            (&[("authorization", "Bearer")], &[]),
            (&[("authorization", "Bearer ")], &[]),
            (&[("authorization", "abc")], &[]),
            (&[("x-api-key", "")], &[]),
            // "a/b="
            (&[("sec-websocket-protocol", "cutline.v1, cutline.key.YS9iPQ")], &["a/b="]),
            (&[("sec-websocket-protocol", "cutline.key.YQ,cutline.key.Yg")], &["a", "b"]),
            (&[("sec-websocket-protocol", "cutline.key.YS9iPQ==")], &[]),
            (&[("sec-websocket-protocol", "cutline.v1, cutline.key.")], &[]),
            (&[], &[]),
        ] {
            let headers = headers(lines);
            let found: Vec<_> = keys(&headers).collect();
            let expected: Vec<Cow<'_, [u8]>> =
                expected.iter().map(|key| Cow::Borrowed(key.as_bytes())).collect();
            assert_eq!(found, expected, "{lines:?}");
        }
    }

    #[test]
    fn only_listed_routes_are_open() {
        let public = PublicEndpoints { health: true, metrics: true, docs: true };
        for open in [
            "/",
            "/page/{name}",
            "/health",
            "/health/live",
            "/health/ready",
            "/metrics",
            "/openapi.json",
            "/api/docs",
            "/api/docs/",
            "/api/docs/{*rest}",
        ] {
            assert!(access(&Method::GET, open).is_open(public), "{open}");
        }
        let closed = ["", "/model/info", "/caption/generate", "/caption/batch", "/image/process"];
        for route in closed.into_iter().chain(["/api/docsx", "/healthy", "/page", "/metrics/"]) {
            assert!(!access(&Method::GET, route).is_open(public), "{route}");
        }
        let public = PublicEndpoints { health: false, metrics: false, docs: false };
        for route in ["/health", "/metrics", "/openapi.json", "/api/docs/"] {
            assert!(!access(&Method::GET, route).is_open(public), "{route}");
        }
        assert!(access(&Method::GET, "/health/ready").is_open(public));
        assert!(access(&Method::HEAD, "/").is_open(public));
        assert!(!access(&Method::POST, "/").is_open(public), "it captions");
        assert!(!access(&Method::DELETE, "/").is_open(public));
    }

    #[test]
    fn the_forwarded_address_is_the_one_recorded_by_the_trusted_proxy() {
        let two = [("x-forwarded-for", "6.6.6.6, 1.1.1.1"), ("x-forwarded-for", "2.2.2.2")];
        for (lines, hop, expected) in [
            (&two[..], 0, Some("2.2.2.2")),
            (&two, 1, Some("1.1.1.1")),
            (&two, 2, Some("6.6.6.6")),
            (&two, 3, None),
            (&[("x-forwarded-for", "7.7.7.7, [2001:db8::1]:443")], 0, Some("2001:db8::1")),
            (&[("x-forwarded-for", "[2001:db8::1]")], 0, Some("2001:db8::1")),
            (&[("x-forwarded-for", "1.2.3.4:5678")], 0, Some("1.2.3.4")),
            (&[("x-forwarded-for", "ä, 1.2.3.4")], 0, Some("1.2.3.4")),
            (&[("x-forwarded-for", "1.2.3.4, unknown")], 0, None),
            (&[("x-forwarded-for", "")], 0, None),
            (&[], 0, None),
        ] {
            let found = forwarded(&headers(lines), hop);
            assert_eq!(found, expected.map(|text| text.parse().unwrap()), "{lines:?} {hop}");
        }
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let network = |text: &str| client_network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("2001:db8:1:2::7"), "2001:db8:1:2::");
        assert_eq!(network("2001:db8:1:3::7"), "2001:db8:1:3::");
        assert_eq!(network("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(network("10.0.0.1"), "10.0.0.1");
    }
}

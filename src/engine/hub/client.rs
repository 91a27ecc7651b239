//! Requests to the hub.
//!
//! hf-hub's own client is not used. It sends the token to the host that it is redirected to when it
//! asks for a file's size, it corrupts a resumed file when the connection breaks twice, and it does
//! not notice a server that ignores the range. This client follows redirects itself and sends the
//! token only to the hub's own origin.

use std::fmt::Display;
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::{Agent, Body};

use super::HubOptions;
use super::cache::is_plain;
use cutline_error::{Error, Result};

/// Attempts before the hub counts as unreachable.
const ATTEMPTS: u32 = 5;

/// Redirects that are followed.
const REDIRECTS: usize = 10;

// Statuses by number, because only `http` may name the type for them.
const NOT_FOUND: u16 = 404;
const METHOD_NOT_ALLOWED: u16 = 405;
const REQUEST_TIMEOUT: u16 = 408;
const TOO_MANY_REQUESTS: u16 = 429;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum RequestFailure {
    /// Another attempt may succeed.
    Temporary(String),
    /// Another attempt would fail too.
    Permanent(Error),
}

/// Sends requests to a hub.
pub(super) struct HubClient {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    pause: Duration,
    patience: Duration,
    attempts: u32,
}

/// The hub's metadata of a file, requested before the download.
#[derive(Debug)]
pub(super) struct Meta {
    /// The commit of the revision.
    pub(super) commit: String,
    /// Identifies the content.
    pub(super) etag: String,
    /// Size in bytes, if the hub reports it.
    pub(super) size: Option<u64>,
}

/// A response with the headers of the redirects that led to it, followed by its own headers.
pub(super) struct HubResponse {
    pub(super) response: Response<Body>,
    hops: Vec<HeaderMap>,
    /// The address that sent the response.
    url: String,
}

impl HubResponse {
    /// The address that sent the response, for messages. It is not the one that was asked if there were
    /// redirects.
    pub(super) fn address(&self) -> &str {
        without_query(&self.url)
    }
}

impl HubClient {
    /// Makes only one attempt at each request unless `retry` is set.
    pub(super) fn new(options: &HubOptions, retry: bool) -> Result<Self> {
        let endpoint = options.endpoint().to_owned();
        let uri: Option<Uri> = endpoint.parse().ok();
        let host =
            uri.filter(|uri| uri.scheme().is_some()).and_then(|u| Some(u.host()?.to_owned()));
        let Some(host) = host else {
            return Err(Error::model(format!(
                "HF_ENDPOINT: `{endpoint}` is not an address; write one like {}",
                super::DEFAULT_ENDPOINT
            )));
        };
        let timeout = Some(options.timeout);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("cutline/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout);
        // A mirror on this machine must not be asked through a proxy.
        if ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str()) {
            config = config.proxy(None);
        }
        let token = options.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        Ok(Self {
            agent: config.build().into(),
            endpoint,
            token: token.map(str::to_owned),
            pause: options.retry_pause,
            patience: options.timeout * 6,
            attempts: if retry { ATTEMPTS } else { 1 },
        })
    }

    /// The address of a file.
    pub(super) fn url(&self, repo: &str, revision: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{}/{file}", self.endpoint, revision.replace('/', "%2F"))
    }

    /// Asks for a file's metadata; `None` if the repository has no such file.
    pub(super) fn meta(&self, repo: &str, revision: &str, file: &str) -> Result<Option<Meta>> {
        let url = self.url(repo, revision, file);
        let known = |hops: &[HeaderMap]| {
            let has = |name| hops.iter().any(|hop| header(hop, name).is_some());
            has("x-repo-commit") && has("x-linked-etag")
        };
        let mut answer = self.with_retries(|| self.ask(Method::HEAD, &url, None, known))?;
        if answer.response.status() == METHOD_NOT_ALLOWED {
            answer = self.with_retries(|| self.ask(Method::GET, &url, Some("bytes=0-0"), known))?;
        }
        let status = answer.response.status();
        let code = header(answer.response.headers(), "x-error-code").unwrap_or_default();
        if status == NOT_FOUND && !["RepoNotFound", "RevisionNotFound"].contains(&code) {
            return Ok(None);
        }
        if !status.is_success() && !status.is_redirection() {
            return Err(match self.refusal_elsewhere(&answer, repo) {
                Some(refusal) => refusal,
                None => self.refusal(repo, revision, file, status, code),
            });
        }
        self.read_meta(&answer).map(Some).ok_or_else(|| {
            Error::model(format!(
                "{} does not answer like a Hugging Face hub (no commit or etag from {}); check \
                 HF_ENDPOINT",
                self.endpoint,
                answer.address(),
            ))
        })
    }

    /// Asks once for the content of a file from `offset` on.
    pub(super) fn get(&self, url: &str, offset: u64) -> Result<HubResponse, RequestFailure> {
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        self.ask(Method::GET, url, range.as_deref(), |_| false)
    }

    /// How long a server may send next to nothing.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Repeats `attempt` after temporary failures, with growing pauses.
    fn with_retries<T>(&self, mut attempt: impl FnMut() -> Result<T, RequestFailure>) -> Result<T> {
        let mut failed = 0;
        loop {
            match attempt() {
                Ok(answer) => return Ok(answer),
                Err(RequestFailure::Permanent(error)) => return Err(error),
                Err(RequestFailure::Temporary(cause)) => {
                    failed += 1;
                    self.pause_after(failed, &cause)?;
                }
            }
        }
    }

    /// Waits after the `failed`th failure in a row, or gives up.
    pub(super) fn pause_after(&self, failed: u32, cause: &str) -> Result<()> {
        if failed >= self.attempts {
            return Err(Error::model(format!(
                "the hub {} cannot be reached ({cause}); check the network and HF_ENDPOINT, or \
                 download the model elsewhere and set MODEL to its folder",
                self.endpoint,
            )));
        }
        let pause = self.pause * (1 << (failed - 1));
        tracing::info!(cause, ?pause, "the request to the hub failed; trying again");
        thread::sleep(pause);
        Ok(())
    }

    /// Sends one request and follows its redirects. The one to another origin is not followed if
    /// `is_enough` says so of the headers so far.
    fn ask(
        &self,
        method: Method,
        url: &str,
        range: Option<&str>,
        is_enough: impl Fn(&[HeaderMap]) -> bool,
    ) -> Result<HubResponse, RequestFailure> {
        let mut url = url.to_owned();
        let mut hops = Vec::new();
        for _ in 0..=REDIRECTS {
            let response = self.send(&method, &url, range).map_err(|failure| match failure {
                RequestFailure::Temporary(cause) if !hops.is_empty() => RequestFailure::Temporary(
                    format!("it redirects to {}: {cause}", without_query(&url)),
                ),
                failure => failure,
            })?;
            let status = response.status();
            hops.push(response.headers().clone());
            let location = header(response.headers(), "location");
            let Some(location) = location.filter(|_| status.is_redirection()) else {
                return Ok(HubResponse { response, hops, url });
            };
            let next = self.next_address(&url, location).map_err(RequestFailure::Permanent)?;
            if !same_origin(&url, &next) && is_enough(&hops) {
                return Ok(HubResponse { response, hops, url });
            }
            url = next;
        }
        Err(RequestFailure::Permanent(Error::model(format!(
            "the hub {} redirects more than {REDIRECTS} times, at last to {}; check HF_ENDPOINT",
            self.endpoint,
            without_query(&url),
        ))))
    }

    /// The address of a redirect that may be followed.
    fn next_address(&self, url: &str, location: &str) -> Result<String> {
        let next = join(url, location);
        let scheme =
            |url: &str| url.parse().ok().as_ref().and_then(Uri::scheme_str).map(str::to_owned);
        let problem = match next.as_deref().and_then(scheme).as_deref() {
            Some("https") => None,
            Some("http") if scheme(url).as_deref() != Some("https") => None,
            Some("http") => Some("which is not encrypted"),
            _ => Some("which is not the address of a file"),
        };
        match (next, problem) {
            (Some(next), None) => Ok(next),
            (next, _) => Err(Error::model(format!(
                "{} redirects to {}, {}; check HF_ENDPOINT, or set it to that address if you trust it",
                without_query(url),
                without_query(next.as_deref().unwrap_or(location)),
                problem.unwrap_or("which is not the address of a file"),
            ))),
        }
    }

    fn send(
        &self,
        method: &Method,
        url: &str,
        range: Option<&str>,
    ) -> Result<Response<Body>, RequestFailure> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        if let Some(token) = self.token.as_ref().filter(|_| same_origin(url, &self.endpoint)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|error| {
            RequestFailure::Permanent(
                Error::model("HF_ENDPOINT or HF_TOKEN cannot be used in a request; check both")
                    .with_source(error),
            )
        })?;
        let response =
            self.agent.run(request).map_err(|e| RequestFailure::Temporary(e.to_string()))?;
        let status = response.status();
        if status == REQUEST_TIMEOUT || status == TOO_MANY_REQUESTS || status.is_server_error() {
            return Err(RequestFailure::Temporary(format!("it answered {status}")));
        }
        Ok(response)
    }

    fn read_meta(&self, answer: &HubResponse) -> Option<Meta> {
        let first = |name| answer.hops.iter().find_map(|hop| header(hop, name));
        let last = answer.hops.last()?;
        let etag = first("x-linked-etag").or_else(|| header(last, "etag"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let commit = first("x-repo-commit")?;
        let size = first("x-linked-size").or_else(|| match answer.response.status().as_u16() {
            200 => header(last, "content-length"),
            _ => header(last, "content-range")?.rsplit('/').next(),
        });
        (is_plain(etag) && is_plain(commit)).then(|| Meta {
            commit: commit.to_owned(),
            etag: etag.to_owned(),
            size: size.and_then(|size| size.parse().ok()),
        })
    }

    /// The error for a request that is refused where the hub redirects to.
    fn refusal_elsewhere(&self, answer: &HubResponse, repo: &str) -> Option<Error> {
        if same_origin(&answer.url, &self.endpoint) {
            return None;
        }
        let token = match self.token {
            Some(_) => {
                "; HF_TOKEN is sent to HF_ENDPOINT only: if you trust the other address, set \
                        HF_ENDPOINT to it"
            }
            None => "; check the spelling of MODEL, and HF_ENDPOINT",
        };
        Some(Error::model(format!(
            "the hub {} redirects to {}, which answers {} for {repo}{token}",
            self.endpoint,
            answer.address(),
            answer.response.status(),
        )))
    }

    /// The error for a request that the hub refuses.
    pub(super) fn refusal(
        &self,
        repo: &str,
        revision: &str,
        file: &str,
        status: impl Display + Into<u16> + Copy,
        code: &str,
    ) -> Error {
        let hub = &self.endpoint;
        let has_token = self.token.is_some();
        Error::model(match (code, status.into()) {
            ("RevisionNotFound", _) => {
                format!("{repo} has no revision `{revision}` on {hub}; check what follows the @")
            }
            ("GatedRepo", _) => format!(
                "{repo} is gated: accept its conditions at {hub}/{repo} and set HF_TOKEN to a \
                 token of the account that did"
            ),
            (_, 401 | 403) if has_token => format!(
                "{hub} refuses access to {repo} ({status}): check the spelling of MODEL, and that \
                 the token in HF_TOKEN is valid and may read it"
            ),
            (_, 401 | 403) => format!(
                "{hub} refuses access to {repo} ({status}): there is no such model, or it is \
                 private or gated; check the spelling of MODEL, or set HF_TOKEN"
            ),
            ("RepoNotFound", _) | (_, 404) => format!(
                "there is no model {repo} on {hub}; check the spelling of MODEL, and set HF_TOKEN \
                 if it is private"
            ),
            _ => format!(
                "{hub} answered {status} for {file} of {repo}; check HF_ENDPOINT, or download the \
                 model elsewhere and set MODEL to its folder"
            ),
        })
    }
}

/// The value of a header, if it exists and is readable.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn same_origin(a: &str, b: &str) -> bool {
    let origin = |text: &str| {
        let uri: Uri = text.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().or(match scheme.as_str() {
            "https" => Some(443),
            _ => Some(80),
        });
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    };
    origin(a).is_some_and(|a| Some(a) == origin(b))
}

/// An address for messages: a query may hold a signature.
pub(super) fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// The address that a redirect from `url` leads to.
fn join(url: &str, location: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    Some(if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let hub = "https://huggingface.co";
        let table = [
            ("https://huggingface.co/a/b", true),
            ("https://HuggingFace.co:443/a", true),
            ("http://huggingface.co/a", false),
            ("https://huggingface.co:8443/a", false),
            ("https://cdn.huggingface.co/a", false),
            ("https://huggingface.co.example.org/a", false),
            ("https://huggingface.co@example.org/a", false),
        ];
        for (url, same) in table {
            assert_eq!(same_origin(url, hub), same, "{url}");
        }
    }

    #[test]
    fn a_redirect_keeps_the_encryption() {
        let client = HubClient::new(&HubOptions::default(), false).unwrap();
        let next = |url: &str, to: &str| client.next_address(url, to).map_err(|e| e.to_string());
        assert_eq!(next("http://a/x", "https://b/y").unwrap(), "https://b/y");
        assert_eq!(next("http://a/x", "http://b/y").unwrap(), "http://b/y");
        for to in ["http://a/x?key=secret", "HTTP://b/y"] {
            let error = next("https://a/x", to).unwrap_err();
            assert!(error.contains("not encrypted") && !error.contains("secret"), "{error}");
        }
        for to in ["ftp://a/x", "file:///etc/passwd", "data://x", "http://", "\u{7f}"] {
            assert!(next("http://a/x", to).unwrap_err().contains("HF_ENDPOINT"), "{to}");
        }
    }

    #[test]
    fn redirects_may_be_relative() {
        let table = [
            ("https://cdn.example/x?y=http://z", "https://cdn.example/x?y=http://z"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/api/x", "https://hub.example:1/api/x"),
            ("/api/x?to=http://z", "https://hub.example:1/api/x?to=http://z"),
            ("x", "https://hub.example:1/a/b/x"),
        ];
        for (location, expected) in table {
            assert_eq!(join("https://hub.example:1/a/b/c", location).unwrap(), expected);
        }
    }
}

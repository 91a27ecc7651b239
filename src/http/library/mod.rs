//! `/library/…`: captions that are kept.
//!
//! `show` reads them, `edit` changes them, `regenerate` and `jobs` caption photos again. `sites` keeps pages of
//! other sites away.

pub(super) mod edit;
pub(super) mod jobs;
pub(super) mod regenerate;
pub(super) mod show;
pub(super) mod sites;

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::HeaderValue;
use cutline_library::{Author, ContentHash, Query, RunId, Sort, Store};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::jobs::Jobs;
use super::auth::Client;
use super::rate::ClientId;
use super::state::AppState;
use crate::library::Keeper;
use cutline_error::{Error, ErrorKind, Result};

/// Operations at a time: each reader has a connection of its own.
const AT_ONCE: usize = 8;
/// The library of a server.
#[derive(Debug)]
pub(super) struct Library {
    store: Arc<dyn Store>,
    pub(super) keeper: Arc<Keeper>,
    permits: Semaphore,
    jobs: Jobs,
}

impl Library {
    pub(super) fn new(store: Arc<dyn Store>) -> Result<Self> {
        let keeper = Arc::new(Keeper::start(Arc::clone(&store))?);
        let (permits, jobs) = (Semaphore::new(AT_ONCE), Jobs::default());
        Ok(Self { store, keeper, permits, jobs })
    }
}

fn library(state: &AppState) -> Result<&Library> {
    state.library().ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "this server keeps no captions; set LIBRARY to keep them")
    })
}

/// Does something with the library, on a thread that may wait for the disk.
pub(in crate::http) async fn with<T: Send + 'static>(
    state: &AppState,
    work: impl FnOnce(&dyn Store) -> Result<T> + Send + 'static,
) -> Result<T> {
    let library = library(state)?;
    let limit = state.settings().request_timeout;
    let work = async {
        let permit = library.permits.acquire().await;
        let _permit = permit.map_err(|_| Error::internal("the library is closed"))?;
        let store = Arc::clone(&library.store);
        tokio::task::spawn_blocking(move || work(&*store))
            .await
            .map_err(|join| Error::internal("the library crashed").with_source(join))?
    };
    timeout(limit, work).await.map_err(|_| Error::too_late("answer", limit, "ask for less"))?
}

/// The parameters of a query string. Each may be given once.
pub(in crate::http) struct Parameters(HashMap<String, String>);

impl Parameters {
    pub(in crate::http) fn read(query: Option<&str>, known: &[&str]) -> Result<Self> {
        let mut all = HashMap::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let name = name.into_owned();
            if !known.contains(&name.as_str()) {
                let detail = format!("{} is not a parameter; use {}", name, known.join(", "));
                return Err(Error::parameter(name, detail));
            }
            if all.insert(name.clone(), value.into_owned()).is_some() {
                return Err(crate::captioner::given_twice(&name));
            }
        }
        Ok(Self(all))
    }

    pub(in crate::http) fn text(&self, name: &str) -> &str {
        self.given(name).unwrap_or_default()
    }

    /// The value of a parameter, if there is one.
    pub(in crate::http) fn given(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(in crate::http) fn parsed<T: FromStr>(
        &self,
        name: &'static str,
        what: &str,
    ) -> Result<Option<T>> {
        let Some(text) = self.0.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let wrong = |_| Error::parameter(name, format!("{name} must be {what}; correct it"));
        text.parse().map(Some).map_err(wrong)
    }

    /// The number of photos that are asked for.
    fn limit(&self) -> Result<Option<usize>> {
        let limit = self.parsed("limit", "a number from 1 to 200")?;
        if limit.is_some_and(|limit| !(1..=200).contains(&limit)) {
            return Err(Error::parameter("limit", "limit must be from 1 to 200; correct it"));
        }
        Ok(limit)
    }

    fn query(&self) -> Result<Query> {
        let sort = match self.0.get("sort").map(String::as_str) {
            None => None,
            Some("relevance") => Some(Sort::Relevance),
            Some("taken") => Some(Sort::Taken),
            Some("added") => Some(Sort::Added),
            Some("confidence") => Some(Sort::Confidence),
            Some(_) => {
                return Err(Error::parameter(
                    "sort",
                    "sort must be relevance, taken, added or confidence; correct it",
                ));
            }
        };
        Ok(Query {
            text: self.text("q").to_owned(),
            filters: Vec::new(),
            unfinished: self.parsed("unfinished", "true or false")?.unwrap_or(false),
            sort,
            limit: self.limit()?.unwrap_or(0),
            cursor: self.0.get("cursor").cloned(),
            count: self.parsed("count", "true or false")?.unwrap_or(false),
        })
    }
}

fn hash(text: &str) -> Result<ContentHash> {
    text.parse()
}

/// The run in the path of a request.
fn run_number(text: &str) -> Result<RunId> {
    let wrong = |_| Error::parameter("run", "a run has a number; list the runs to find it");
    text.parse().map_err(wrong)
}

fn no_photo(hash: &ContentHash) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("the library has no photo {hash}; search for it, or caption it"),
    )
}

/// The version of a photo as an ETag.
fn etag(version: impl Display) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}

/// Who edits: people are known by their keys.
pub(in crate::http) fn person(state: &AppState, request: &Request) -> Author {
    match state.guard().client(request) {
        Client::Account(account) => Author::person(account.name()),
        Client::Other(ClientId::Key(number)) => Author::person(format!("key {}", number + 1)),
        Client::Other(_) => Author::person("http"),
    }
}

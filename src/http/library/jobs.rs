//! Captions many photos of the library again, one after another, while the server does other work.
//!
//! A job is a run, so what it changed can be undone. Jobs themselves are in memory: when the server stops,
//! those that are not done end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use cutline_library::bulk::{Selection, select};
use cutline_library::{ContentHash, Query, RunId, Written, now};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::edit::{body, check_json};
use super::regenerate::{parameters, regenerate};
use super::{hash, library, person, run_number, with};
use crate::captioner::{CaptionParams, Priority, charged_to, current_account};
use crate::http::error::Failure;
use crate::http::openapi::bodies::RegenerateManyRequest;
use crate::http::openapi::errors::{
    LibraryChangeProblems, LibraryProblems, LibraryRegenerateProblems,
};
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// Jobs that are listed.
const LISTED: usize = 50;
/// Jobs that may wait.
const UNFINISHED: usize = 8;
/// Photos of a job at most.
const PHOTOS: usize = 100_000;
/// Attempts at a photo while the server is busy.
const TRIES: u32 = 60;

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum JobState {
    /// Another job is at work.
    Waiting,
    /// It is at work.
    Running,
    /// All photos were tried.
    Done,
    /// Somebody cancelled it.
    Cancelled,
    /// It could not go on.
    Failed,
}

/// Photos that are captioned again, one after another.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct Job {
    /// The number of the run, to undo it, and the name of the job.
    run: i64,
    state: JobState,
    /// What the photos were searched with, if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    q: Option<String>,
    /// The prompt, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    prompt: Option<String>,
    /// The model or route that was asked for, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    model: Option<String>,
    /// Photos in all.
    total: u64,
    /// Photos that were tried.
    done: u64,
    /// Texts that are shown now.
    written: u64,
    /// Texts that are suggested.
    suggested: u64,
    /// Texts that were the same, or were rejected before.
    unchanged: u64,
    /// Photos whose files are not there.
    unavailable: u64,
    /// Photos that could not be captioned.
    failed: u64,
    /// When it was asked for, in milliseconds since 1970.
    started_at: i64,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    finished_at: Option<i64>,
    /// Why it could not go on, or the last photo could not be captioned.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    problem: Option<String>,
}

impl Job {
    fn is_over(&self) -> bool {
        !matches!(self.state, JobState::Waiting | JobState::Running)
    }
}

/// A job, shared by the task that does it and those who ask for it.
#[derive(Debug)]
struct Entry {
    job: Mutex<Job>,
    cancelled: AtomicBool,
}

impl Entry {
    fn update<T>(&self, change: impl FnOnce(&mut Job) -> T) -> T {
        change(&mut self.job.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn snapshot(&self) -> Job {
        self.update(|job| job.clone())
    }
}

/// The jobs since the server was started, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    entries: Mutex<VecDeque<Arc<Entry>>>,
    turn: tokio::sync::Mutex<()>,
}

impl Jobs {
    fn entries(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses further jobs while too many wait.
    fn check_room(&self) -> Result<()> {
        let unfinished = self.entries().iter().filter(|entry| !entry.snapshot().is_over()).count();
        if unfinished < UNFINISHED {
            return Ok(());
        }
        let detail = "too many jobs wait already; wait until one is done, or cancel one";
        Err(Error::new(ErrorKind::QueueFull, detail).with_retry_after(Duration::from_secs(30)))
    }

    fn add(&self, job: Job) -> Arc<Entry> {
        let entry = Arc::new(Entry { job: Mutex::new(job), cancelled: AtomicBool::new(false) });
        let mut entries = self.entries();
        entries.push_front(Arc::clone(&entry));
        // Those that are not over are among the first.
        entries.truncate(LISTED);
        entry
    }
}

/// How many photos would be captioned again.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Rehearsal {
    /// Photos that were selected.
    matched: u64,
}

/// Captions many photos again
///
/// `q` is a search, or `photos` lists hashes; with `dry_run` the photos are only counted. The other fields
/// are parameters of captions. The photos are captioned one after another, as one run, which can be undone.
#[utoipa::path(
    post,
    path = "/library/regenerate",
    operation_id = "library_regenerate_many",
    tag = "library",
    request_body(content = RegenerateManyRequest, content_type = "application/json",
                 example = json!({"q": "confidence:<0.3", "num_beams": 3, "dry_run": true})),
    responses(
        (status = OK, description = "With `dry_run`: the number of photos", body = Rehearsal),
        (status = ACCEPTED, description = "The job", body = Job),
        LibraryRegenerateProblems,
    ),
)]
pub(in crate::http) async fn start(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let author = person(&state, &request);
    let mut given: Map<String, Value> = body(&state, request).await?;
    let dry_run = flag(&mut given, "dry_run")?;
    let (selection, q) = selection(&mut given)?;
    let prompt = given.get("prompt").and_then(Value::as_str).map(str::to_owned);
    let mut described = given.clone();
    described.insert("q".into(), json!(q));
    let params = parameters(given)?;
    match params.model {
        None => drop(state.captioner()?.prompt_tokens(&params)?),
        Some(_) => state.captioner()?.check(&params)?,
    }
    let photos = with(&state, move |store| select(store, &selection)).await?;
    if dry_run {
        return Ok(Json(Rehearsal { matched: photos.len() as u64 }).into_response());
    }
    if photos.len() > PHOTOS {
        let detail = format!(
            "{} photos are meant, but a job may have {PHOTOS}; narrow the search",
            photos.len()
        );
        return Err(Error::new(ErrorKind::BatchTooLarge, detail).into());
    }
    let jobs = &library(&state)?.jobs;
    jobs.check_room()?;
    let described = Value::Object(described).to_string();
    let run = with(&state, move |store| store.start_run("regenerate", &described, &author)).await?;
    let entry = jobs.add(Job {
        run,
        state: JobState::Waiting,
        q,
        prompt,
        model: params.model.clone(),
        total: photos.len() as u64,
        done: 0,
        written: 0,
        suggested: 0,
        unchanged: 0,
        unavailable: 0,
        failed: 0,
        started_at: now(),
        finished_at: None,
        problem: None,
    });
    let job = entry.snapshot();
    let work = work(state, entry, photos, params, run);
    match current_account() {
        Some(account) => drop(tokio::spawn(charged_to(account, work))),
        None => drop(tokio::spawn(work)),
    }
    Ok((StatusCode::ACCEPTED, Json(job)).into_response())
}

fn flag(given: &mut Map<String, Value>, name: &'static str) -> Result<bool> {
    match given.remove(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(value),
        Some(_) => Err(Error::parameter(name, format!("{name} must be true or false; correct it"))),
    }
}

/// Which photos are meant, and the search if there is one.
fn selection(given: &mut Map<String, Value>) -> Result<(Selection, Option<String>)> {
    let mut take = |name: &str| given.remove(name).filter(|value| !value.is_null());
    match (take("photos"), take("q")) {
        (None, Some(Value::String(text))) => {
            let query = Query { text: text.clone(), ..Query::default() };
            Ok((Selection::Query(Box::new(query)), Some(text)))
        }
        (Some(Value::Array(photos)), None) => {
            let hash = |photo: &Value| hash(photo.as_str().unwrap_or_default());
            Ok((Selection::Photos(photos.iter().map(hash).collect::<Result<_>>()?), None))
        }
        _ => Err(Error::parameter(
            "q",
            "give either q, a search, or photos, a list of hashes, to say which photos are meant",
        )),
    }
}

async fn work(
    state: AppState,
    entry: Arc<Entry>,
    photos: Vec<ContentHash>,
    params: CaptionParams,
    run: RunId,
) {
    let ended = match library(&state) {
        Ok(library) => {
            let _turn = library.jobs.turn.lock().await;
            all(&state, &entry, photos, &params, run).await
        }
        Err(error) => Err(error),
    };
    let finished = with(&state, move |store| store.finish_run(run)).await;
    entry.update(|job| {
        job.finished_at = Some(now());
        job.state = match &ended {
            Ok(()) if entry.cancelled.load(Ordering::Relaxed) => JobState::Cancelled,
            Ok(()) => JobState::Done,
            Err(_) => JobState::Failed,
        };
        if let Err(error) = ended.as_ref().and(finished.as_ref().map(|_| &())) {
            tracing::error!(%error, run, "a job of the library ended early");
            job.problem = Some(error.detail().to_owned());
        }
    });
}

/// Captions the photos one after another.
///
/// # Errors
/// Those that would be the same for all further photos.
async fn all(
    state: &AppState,
    entry: &Entry,
    photos: Vec<ContentHash>,
    params: &CaptionParams,
    run: RunId,
) -> Result<()> {
    for hash in photos {
        if entry.cancelled.load(Ordering::Relaxed) {
            break;
        }
        entry.update(|job| job.state = JobState::Running);
        let outcome = one(state, hash, params, run).await;
        entry.update(|job| count(job, outcome))?;
    }
    Ok(())
}

async fn one(
    state: &AppState,
    hash: ContentHash,
    params: &CaptionParams,
    run: RunId,
) -> Result<Written> {
    let limit = state.settings().request_timeout;
    let mut tries = 0;
    loop {
        let work = Box::pin(regenerate(state, hash, params.clone(), Some(run), Priority::Bulk));
        let late = |_| Error::too_late("caption", limit, "ask for fewer tokens or beams");
        let outcome = timeout(limit, work).await.map_err(late).and_then(|done| done);
        tries += 1;
        match outcome {
            Err(error) if is_passing(&error, params) && tries < TRIES => {
                let pause = error.retry_after().unwrap_or(Duration::from_secs(1));
                tokio::time::sleep(pause).await;
            }
            outcome => return outcome.map(|done| done.written),
        }
    }
}

/// Whether the same photo may succeed a little later.
fn is_passing(error: &Error, params: &CaptionParams) -> bool {
    match error.kind() {
        ErrorKind::QueueFull | ErrorKind::LibraryBusy => true,
        // All backends of a route are ill.
        ErrorKind::NotReady => params.model.is_some(),
        _ => false,
    }
}

/// Counts a photo.
///
/// # Errors
/// Those that would be the same for all further photos.
fn count(job: &mut Job, outcome: Result<Written>) -> Result<()> {
    match outcome {
        Ok(Written::Current(_)) => job.written += 1,
        Ok(Written::Suggested(_)) => job.suggested += 1,
        Ok(Written::Rejected(_) | Written::Unchanged) => job.unchanged += 1,
        // It was removed meanwhile, or its file was.
        Err(error) if error.kind() == ErrorKind::NotFound => job.unavailable += 1,
        Err(error) if error.kind() == ErrorKind::PhotoUnavailable => job.unavailable += 1,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ShuttingDown | ErrorKind::NotReady | ErrorKind::StorageFull
            ) =>
        {
            return Err(error);
        }
        Err(error) => {
            job.failed += 1;
            job.problem = Some(error.detail().to_owned());
        }
    }
    job.done += 1;
    Ok(())
}

/// Lists jobs
///
/// Those since the server was started, the newest first.
#[utoipa::path(
    get,
    path = "/library/jobs",
    operation_id = "library_jobs",
    tag = "library",
    responses((status = OK, description = "Jobs and how far they are", body = [Job]), LibraryProblems),
)]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
) -> Result<Json<Vec<Job>>, Failure> {
    let entries = library(&state)?.jobs.entries();
    Ok(Json(entries.iter().map(|entry| entry.snapshot()).collect()))
}

/// Cancels a job
///
/// The photo that is in work is still captioned. What was done stays, and can be undone.
#[utoipa::path(
    post,
    path = "/library/jobs/{run}/cancel",
    operation_id = "library_cancel",
    tag = "library",
    params(("run" = i64, Path, description = "The number of the run")),
    responses((status = OK, description = "The job", body = Job), LibraryChangeProblems),
)]
pub(in crate::http) async fn cancel(
    State(state): State<AppState>,
    Path(run): Path<String>,
    request: Request,
) -> Result<Json<Job>, Failure> {
    check_json(request.headers())?;
    let run = run_number(&run)?;
    let entries = library(&state)?.jobs.entries();
    let entry = entries.iter().find(|entry| entry.snapshot().run == run).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "there is no such job; list the jobs to find it")
    })?;
    entry.cancelled.store(true, Ordering::Relaxed);
    Ok(Json(entry.snapshot()))
}

//! Changes the texts in the library.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use cutline_library::bulk::{self, Bulk, BulkAction, BulkReport, Selection};
use cutline_library::{
    Applied, Change, Feedback, FeedbackKind, Field, Query, TextAction, TextChange, Written,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Parameters, etag, hash, no_photo, person, run_number, with};
use crate::http::body::{BodyLimits, LimitedBody};
use crate::http::error::Failure;
use crate::http::openapi::errors::LibraryChangeProblems;
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// Bytes of a request at most.
const MAX_BODY: usize = 1 << 20;

/// The version in `If-Match`.
fn if_match(headers: &HeaderMap) -> Result<u64> {
    let Some(given) = headers.get(IF_MATCH) else {
        return Err(Error::new(
            ErrorKind::PreconditionRequired,
            "the version that is changed is missing; read the photo, and send its ETag as If-Match",
        ));
    };
    let text = given.to_str().unwrap_or_default().trim();
    let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    version.and_then(|version| version.parse().ok()).ok_or_else(|| {
        Error::new(
            ErrorKind::PreconditionFailed,
            "If-Match is not the ETag of a photo; read the photo, and send its ETag",
        )
    })
}

/// Pages of other sites can send other types without asking, and then change what they cannot read.
pub(super) fn check_json(headers: &HeaderMap) -> Result<()> {
    let given = headers.get(CONTENT_TYPE).and_then(|given| given.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::UnsupportedFormat,
        "changes of the library are sent with the content type application/json; add it",
    ))
}

/// The JSON of a request.
pub(in crate::http) async fn body<T: for<'de> Deserialize<'de>>(
    state: &AppState,
    request: Request,
) -> Result<T> {
    check_json(request.headers())?;
    let decoders = state.decoders()?;
    let (head, body) = request.into_parts();
    let budget = decoders.budget();
    let mut limits = BodyLimits::of(MAX_BODY, 2, 0, state.settings(), budget);
    limits.bytes = limits.bytes.min(MAX_BODY);
    let bytes = LimitedBody::new(&head.headers, body, limits, budget)?.collect().await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(
            ErrorKind::MalformedRequest,
            format!("the body is not the JSON that is expected ({error}); correct it"),
        )
    })
}

fn field(text: &str) -> Result<Field> {
    text.parse()
}

/// Removes a photo for good
///
/// With all texts, history and features, from the library and from the caches of this server.
#[utoipa::path(
    delete,
    path = "/library/assets/{hash}",
    operation_id = "library_purge",
    tag = "library",
    params(("hash" = String, Path, description = "The hash of the photo")),
    responses((status = NO_CONTENT, description = "It is gone"), LibraryChangeProblems),
)]
pub(in crate::http) async fn purge(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    let hash = hash(&name)?;
    let applied = with(&state, move |store| store.apply(vec![Change::Purge(hash)])).await?;
    if let Ok(captioner) = state.captioner() {
        captioner.forget(&format!("blake3:{hash}"));
    }
    if applied == [Applied::Purged(false)] {
        return Err(no_photo(&hash).into());
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What became of an edit.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct EditAnswer {
    /// The version of the photo now.
    version: u64,
    #[serde(flatten)]
    written: Written,
}

/// Edits a text of a photo
///
/// Writes, clears, accepts, rejects, or goes back to a revision. `If-Match` must be the ETag of the photo.
#[utoipa::path(
    patch,
    path = "/library/assets/{hash}/texts/{field}",
    operation_id = "library_edit",
    tag = "library",
    params(
        ("hash" = String, Path, description = "The hash of the photo"),
        ("field" = Field, Path, description = "Which text"),
        ("lang" = Option<String>, Query, description = "The language, `en` if not given"),
        ("if-match" = String, Header, description = "The ETag of the photo"),
    ),
    request_body(content = TextAction, content_type = "application/json",
                 example = json!({"action": "write", "text": "Rex on the beach"})),
    responses(
        (status = OK, description = "What became of it; the version is the ETag", body = EditAnswer),
        LibraryChangeProblems,
    ),
)]
pub(in crate::http) async fn edit(
    State(state): State<AppState>,
    Path((name, text)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    let parameters = Parameters::read(request.uri().query(), &["lang"])?;
    let lang =
        Some(parameters.text("lang")).filter(|lang| !lang.is_empty()).unwrap_or("en").to_owned();
    let change = TextChange {
        hash: hash(&name)?,
        field: field(&text)?,
        lang,
        if_version: Some(if_match(request.headers())?),
        author: person(&state, &request),
        run: None,
        action: body(&state, request).await?,
    };
    let applied = with(&state, move |store| store.apply(vec![Change::Text(change)])).await?;
    let Some(Applied::Text { version, written }) = applied.into_iter().next() else {
        return Err(Error::internal("an edit was lost").into());
    };
    Ok(([(ETAG, etag(version))], Json(EditAnswer { version, written })).into_response())
}

/// What somebody thinks of a text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct FeedbackBody {
    /// The photo.
    hash: String,
    /// Which text.
    field: Field,
    /// Its language, `en` if not given.
    #[serde(default)]
    lang: Option<String>,
    /// The revision; the current one if not given.
    #[serde(default, deserialize_with = "cutline_library::whole::or_null")]
    revision: Option<i64>,
    /// Whether it is good.
    good: bool,
    /// Why.
    #[serde(default)]
    reason: String,
}

/// Says that a text is good, or not
#[utoipa::path(
    post,
    path = "/library/feedback",
    operation_id = "library_rate",
    tag = "library",
    request_body(content = FeedbackBody, content_type = "application/json"),
    responses((status = NO_CONTENT, description = "It is stored"), LibraryChangeProblems),
)]
pub(in crate::http) async fn rate(
    State(state): State<AppState>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let author = person(&state, &request);
    let given: FeedbackBody = body(&state, request).await?;
    let feedback = Feedback {
        hash: hash(&given.hash)?,
        revision: given.revision,
        field: given.field,
        lang: given.lang.unwrap_or_else(|| "en".into()),
        kind: if given.good { FeedbackKind::Up } else { FeedbackKind::Down },
        reason: given.reason,
        author,
    };
    with(&state, move |store| store.apply(vec![Change::Feedback(feedback)])).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A change of many photos.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct BulkBody {
    /// Only these photos.
    #[serde(default)]
    photos: Option<Vec<String>>,
    /// Only photos that this search finds.
    #[serde(default)]
    q: Option<String>,
    /// The language of the texts, `en` if not given.
    #[serde(default)]
    lang: Option<String>,
    /// Only tell what would happen.
    #[serde(default)]
    dry_run: bool,
    /// What happens to each photo.
    change: BulkAction,
}

/// Changes many photos, or tells what would change
#[utoipa::path(
    post,
    path = "/library/bulk",
    operation_id = "library_bulk",
    tag = "library",
    request_body(content = BulkBody, content_type = "application/json",
        example = json!({"q": "is:suggested", "change": {"action": "accept", "field": "caption"}, "dry_run": true})),
    responses((status = OK, description = "What was done", body = BulkReport), LibraryChangeProblems),
)]
pub(in crate::http) async fn change(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<BulkReport>, Failure> {
    let author = person(&state, &request);
    let given: BulkBody = body(&state, request).await?;
    let select = match (given.photos, given.q) {
        (Some(photos), None) => {
            Selection::Photos(photos.iter().map(|photo| hash(photo)).collect::<Result<_>>()?)
        }
        (None, Some(text)) => Selection::Query(Box::new(Query { text, ..Query::default() })),
        _ => {
            return Err(Error::parameter(
                "q",
                "give either q or photos, to say which photos are meant",
            )
            .into());
        }
    };
    let bulk = Bulk {
        select,
        lang: given.lang.unwrap_or_else(|| "en".into()),
        action: given.change,
        author,
        dry_run: given.dry_run,
    };
    Ok(Json(with(&state, move |store| bulk::run(store, &bulk)).await?))
}

/// Takes back what a run changed
///
/// Texts that were changed since stay as they are.
#[utoipa::path(
    post,
    path = "/library/runs/{run}/undo",
    operation_id = "library_undo",
    tag = "library",
    params(("run" = i64, Path, description = "The number of the run")),
    responses((status = OK, description = "What was done", body = BulkReport), LibraryChangeProblems),
)]
pub(in crate::http) async fn undo(
    State(state): State<AppState>,
    Path(run): Path<String>,
    request: Request,
) -> Result<Json<BulkReport>, Failure> {
    check_json(request.headers())?;
    let author = person(&state, &request);
    let run = run_number(&run)?;
    Ok(Json(with(&state, move |store| bulk::undo(store, run, &author, false)).await?))
}

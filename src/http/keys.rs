//! `/admin/keys` and `/usage`: the keys of clients, and what they have used.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use cutline_library::{
    ApiKey, Applied, Budget, BudgetPeriod, Change, KeyChange, KeyRules, PriorityClass, Scope,
    Secret, UsageGroup, UsageQuery, UsageRow, Used, format_time, parse_time, period,
};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::error::Failure;
use super::library::edit::body;
use super::library::{Parameters, with};
use super::openapi::errors::{KeyChangeProblems, LibraryProblems};
use super::state::AppState;
use crate::accounts::Accounts;
use cutline_error::{Error, ErrorKind, Result};

/// The longest grace of a rotation, in seconds: 90 days.
const MOST_GRACE: u64 = 90 * 86_400;

/// A key that was just made.
#[derive(Serialize, ToSchema)]
pub(super) struct NewKey {
    /// The key itself. It is shown this once.
    key: String,
    #[serde(flatten)]
    about: ApiKey,
}

/// Changes of a key. What is left out stays; what is `null` is no longer limited.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyEdit {
    /// Another name.
    #[serde(default)]
    name: Option<String>,
    /// Other scopes.
    #[serde(default)]
    scopes: Option<Vec<Scope>>,
    /// Other models; all if there are none.
    #[serde(default)]
    models: Option<Vec<String>>,
    /// Requests per minute.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    requests_per_minute: Option<Option<u32>>,
    /// Images per minute.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    images_per_minute: Option<Option<u32>>,
    /// Requests at a time.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    parallel: Option<Option<u32>>,
    /// What it may use in a day or a month.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Budget>)]
    budget: Option<Option<Budget>>,
    /// Which requests come first.
    #[serde(default)]
    priority: Option<PriorityClass>,
    /// When it ends, in milliseconds since 1970.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = 0)]
    expires_at: Option<Option<i64>>,
}

/// A value that is there, even if it is null.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// How a key is rotated.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateRequest {
    /// How long the key before is valid, in seconds.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 7_776_000)]
    grace_seconds: u64,
}

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsageAnswer {
    /// The first day.
    from: String,
    /// The last day.
    to: String,
    /// How it is added up.
    group_by: UsageGroup,
    /// One for each key, model or day.
    rows: Vec<UsageRow>,
    /// All of them together.
    total: Used,
}

fn accounts(state: &AppState) -> Result<&Accounts> {
    state.guard().accounts().ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "keys are kept in the library, and this server has none; set LIBRARY",
        )
    })
}

/// The keys, for those who may change them. Nobody makes the first one over the network: whoever did would
/// lock all others out.
fn managed(state: &AppState) -> Result<&Accounts> {
    let accounts = accounts(state)?;
    if state.guard().needs_key() {
        return Ok(accounts);
    }
    Err(Error::new(
        ErrorKind::Unauthorized,
        "this needs an API key, and the server has none yet; make the first one with `cutline keys create \
         NAME --scope admin`, or set API_KEYS",
    ))
}

async fn change(state: &AppState, change: KeyChange) -> Result<ApiKey> {
    let accounts = accounts(state)?;
    let applied = with(state, move |store| store.apply(vec![Change::Key(change)])).await?;
    accounts.refresh().await?;
    match applied.into_iter().next() {
        Some(Applied::Key(key)) => Ok(*key),
        _ => Err(Error::internal("a key was lost")),
    }
}

fn id(text: &str) -> Result<i64> {
    text.parse().map_err(|_| {
        Error::new(ErrorKind::NotFound, "a key has a number; look at the list of keys")
    })
}

fn fresh(status: StatusCode, key: &Secret, about: ApiKey) -> Response {
    let answer = NewKey { key: key.reveal().to_owned(), about };
    (status, [(CACHE_CONTROL, "no-store")], Json(answer)).into_response()
}

/// Makes a key
///
/// The key is in the answer and nowhere else: the library has only its hash.
#[utoipa::path(
    post,
    path = "/admin/keys",
    operation_id = "create_key",
    tag = "keys",
    request_body(content = KeyRules, content_type = "application/json",
                 example = json!({"name": "web site", "requests_per_minute": 60})),
    responses((status = CREATED, description = "The key", body = NewKey), KeyChangeProblems),
)]
pub(super) async fn create(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    managed(&state)?;
    let rules: KeyRules = body(&state, request).await?;
    let secret = Secret::generate()?;
    let about = change(&state, KeyChange::Create { rules, secret: secret.hash() }).await?;
    Ok(fresh(StatusCode::CREATED, &secret, about))
}

/// Lists the keys
///
/// Without the keys themselves, which nobody knows but those who have them.
#[utoipa::path(
    get,
    path = "/admin/keys",
    operation_id = "list_keys",
    tag = "keys",
    responses((status = OK, description = "The keys, oldest first", body = [ApiKey]), LibraryProblems),
)]
pub(super) async fn list(State(state): State<AppState>) -> Result<Json<Vec<ApiKey>>, Failure> {
    managed(&state)?;
    Ok(Json(with(&state, |store| store.keys()).await?))
}

/// Changes what a key may do
///
/// What is left out stays as it is; a limit that is null ends.
#[utoipa::path(
    patch,
    path = "/admin/keys/{id}",
    operation_id = "edit_key",
    tag = "keys",
    params(("id" = i64, Path, description = "The number of the key")),
    request_body(content = KeyEdit, content_type = "application/json",
                 example = json!({"requests_per_minute": 120, "parallel": null})),
    responses((status = OK, description = "The key", body = ApiKey), KeyChangeProblems),
)]
pub(super) async fn edit(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<ApiKey>, Failure> {
    managed(&state)?;
    let id = id(&name)?;
    let edit: KeyEdit = body(&state, request).await?;
    let found = with(&state, move |store| store.key(id)).await?;
    let mut rules = found.map(|key| key.rules).ok_or_else(|| {
        let detail = format!("there is no key {id}; look at the list of keys");
        Error::new(ErrorKind::NotFound, detail)
    })?;
    let KeyRules { name, scopes, models, priority, .. } = &mut rules;
    *name = edit.name.unwrap_or(std::mem::take(name));
    *scopes = edit.scopes.unwrap_or(std::mem::take(scopes));
    *models = edit.models.unwrap_or(std::mem::take(models));
    *priority = edit.priority.unwrap_or(*priority);
    let limits = [
        (&mut rules.requests_per_minute, edit.requests_per_minute),
        (&mut rules.images_per_minute, edit.images_per_minute),
        (&mut rules.parallel, edit.parallel),
    ];
    for (limit, new) in limits {
        *limit = new.unwrap_or(*limit);
    }
    rules.budget = edit.budget.unwrap_or(rules.budget);
    rules.expires_at = edit.expires_at.unwrap_or(rules.expires_at);
    Ok(Json(change(&state, KeyChange::Edit { id, rules }).await?))
}

/// Replaces a key by another one
///
/// Limits and usage stay. The key before is valid for `grace_seconds` more.
#[utoipa::path(
    post,
    path = "/admin/keys/{id}/rotate",
    operation_id = "rotate_key",
    tag = "keys",
    params(("id" = i64, Path, description = "The number of the key")),
    request_body(content = RotateRequest, content_type = "application/json",
                 example = json!({"grace_seconds": 3600})),
    responses((status = OK, description = "The new key", body = NewKey), KeyChangeProblems),
)]
pub(super) async fn rotate(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    managed(&state)?;
    let id = id(&name)?;
    let RotateRequest { grace_seconds } = body(&state, request).await?;
    if grace_seconds > MOST_GRACE {
        let detail = format!("grace_seconds must be at most {MOST_GRACE}; send less");
        return Err(Error::parameter("grace_seconds", detail).into());
    }
    let grace = i64::try_from(grace_seconds * 1000).unwrap_or(0);
    let secret = Secret::generate()?;
    let rotate = KeyChange::Rotate { id, secret: secret.hash(), grace };
    let about = change(&state, rotate).await?;
    Ok(fresh(StatusCode::OK, &secret, about))
}

/// Revokes a key
///
/// At once and for good. What it has used stays in the library.
#[utoipa::path(
    post,
    path = "/admin/keys/{id}/revoke",
    operation_id = "revoke_key",
    tag = "keys",
    params(("id" = i64, Path, description = "The number of the key")),
    responses((status = OK, description = "The key", body = ApiKey), LibraryProblems),
)]
pub(super) async fn revoke(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<ApiKey>, Failure> {
    managed(&state)?;
    Ok(Json(change(&state, KeyChange::Revoke { id: id(&name)? }).await?))
}

/// Reports what keys have used
///
/// A key without the scope `admin` reads its own usage only. Without times, it is that of this month.
#[utoipa::path(
    get,
    path = "/usage",
    operation_id = "usage",
    tag = "keys",
    params(
        ("from" = Option<String>, Query, description = "The first day: `2026-11-27`, UTC"),
        ("to" = Option<String>, Query, description = "The last day"),
        ("group_by" = Option<UsageGroup>, Query, description = "How it is added up"),
    ),
    responses((status = OK, description = "The usage", body = UsageAnswer), LibraryProblems),
)]
pub(super) async fn usage(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<UsageAnswer>, Failure> {
    let now = accounts(&state)?.now();
    let given = Parameters::read(request.uri().query(), &["from", "to", "group_by"])?;
    let time = |name: &'static str, otherwise: i64| match given.text(name) {
        "" => Ok(otherwise),
        text => parse_time(text).map_err(|error| Error::parameter(name, error.detail().to_owned())),
    };
    let group = given.given("group_by").map(str::parse).transpose()?.unwrap_or_default();
    let client = state.guard().client(&request);
    let all = client.may(Scope::Admin) || !state.guard().needs_key();
    let own = client.account().map(|account| account.id());
    let query = UsageQuery {
        from: time("from", period(now, BudgetPeriod::Month).0)?,
        to: time("to", now)?,
        key: own.filter(|_| !all),
        group,
    };
    let rows = with(&state, move |store| store.usage(&query)).await?;
    let mut total = Used::default();
    rows.iter().for_each(|row| total.add(&row.used));
    let day = |time| format_time(time).chars().take(10).collect();
    let (from, to) = (day(query.from), day(query.to));
    Ok(Json(UsageAnswer { from, to, group_by: group, rows, total }))
}

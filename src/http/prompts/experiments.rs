//! `/experiments…`

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use cutline_library::Store;
use cutline_library::prompts::{Experiment, Variant};
use cutline_library::whole::number;
use cutline_prompts::{Metric, Report};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{body, person, with};
use crate::http::error::Failure;
use crate::http::openapi::errors::{LibraryChangeProblems, LibraryProblems};
use crate::http::state::AppState;
use crate::prompts;
use cutline_error::Result;

/// Lists the experiments
#[utoipa::path(
    get,
    path = "/experiments",
    operation_id = "experiments_list",
    tag = "prompts",
    responses((status = OK, description = "The newest first", body = [Experiment]), LibraryProblems),
)]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
) -> Result<Json<Vec<Experiment>>, Failure> {
    Ok(Json(with(&state, |store| store.experiments(false)).await?))
}

/// An experiment that is started.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct StartBody {
    /// Its name.
    name: String,
    /// The prompt.
    prompt: String,
    /// Two to four versions of it.
    variants: Vec<Variant>,
    #[serde(default)]
    unit: Unit,
    /// What it is decided by.
    #[serde(default)]
    metric: Metric,
    /// How many captions of each variant, with which the metric is known, are planned. There is no verdict
    /// before.
    #[serde(deserialize_with = "number")]
    planned: u64,
    /// What mixes units differently than other experiments; the name if not given.
    #[serde(default)]
    salt: Option<String>,
}

/// What always gets the same variant.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Unit {
    /// Whoever has the key, or without one the address.
    #[default]
    Key,
    /// The parameter `user` of the request; without one as `key`.
    User,
    /// The photo.
    Photo,
}

/// Starts an experiment
///
/// From now on, those who ask for the prompt without a label get one of the variants. One experiment runs
/// with a prompt at a time.
#[utoipa::path(
    post,
    path = "/experiments",
    operation_id = "experiments_start",
    tag = "prompts",
    request_body(content = StartBody, content_type = "application/json", example = json!({
        "name": "shorter", "prompt": "alt", "planned": 200,
        "variants": [{"version": 1, "weight": 1}, {"version": 2, "weight": 1}],
    })),
    responses((status = CREATED, description = "The experiment", body = Experiment), LibraryChangeProblems),
)]
pub(in crate::http) async fn start(
    State(state): State<AppState>,
    request: Request,
) -> Result<(StatusCode, Json<Experiment>), Failure> {
    let author = person(&state, &request);
    let given: StartBody = body(&state, request).await?;
    let unit = match given.unit {
        Unit::Key => "key",
        Unit::User => "user",
        Unit::Photo => "photo",
    };
    let experiment = Experiment {
        id: 0,
        salt: given.salt.unwrap_or_else(|| given.name.clone()),
        name: given.name,
        prompt: given.prompt,
        variants: given.variants,
        unit: unit.to_owned(),
        metric: given.metric.as_str().to_owned(),
        planned: given.planned,
        author,
        started_at: 0,
        stopped_at: None,
        promoted: None,
    };
    let started = with(&state, move |store| {
        let name = experiment.name.clone();
        prompts::start(store, experiment)?;
        prompts::experiment(store, &name)
    });
    Ok((StatusCode::CREATED, Json(started.await?)))
}

/// An experiment, and what it shows.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ExperimentAnswer {
    experiment: Experiment,
    report: Report,
}

/// Reports what an experiment shows
///
/// For each variant the numbers, means and 95 % intervals. There is no verdict before the planned number.
#[utoipa::path(
    get,
    path = "/experiments/{name}",
    operation_id = "experiments_report",
    tag = "prompts",
    params(("name" = String, Path, description = "The name of the experiment")),
    responses((status = OK, description = "The report", body = ExperimentAnswer), LibraryProblems),
)]
pub(in crate::http) async fn report(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<ExperimentAnswer>, Failure> {
    let read = move |store: &dyn Store| -> Result<ExperimentAnswer> {
        let experiment = prompts::experiment(store, &name)?;
        let report = prompts::results(store, &experiment)?;
        Ok(ExperimentAnswer { experiment, report })
    };
    Ok(Json(with(&state, read).await?))
}

/// The version that is served from now on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PromoteBody {
    /// A variant of the experiment.
    #[serde(deserialize_with = "number")]
    version: u32,
    /// Whether the label `production` is moved even if it is protected.
    #[serde(default)]
    force: bool,
}

/// Ends an experiment and promotes a version
///
/// It gets the label `production`.
#[utoipa::path(
    post,
    path = "/experiments/{name}/promote",
    operation_id = "experiments_promote",
    tag = "prompts",
    params(("name" = String, Path, description = "The name of the experiment")),
    request_body(content = PromoteBody, content_type = "application/json",
                 example = json!({"version": 2})),
    responses((status = NO_CONTENT, description = "It is served"), LibraryChangeProblems),
)]
pub(in crate::http) async fn promote(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let author = person(&state, &request);
    let PromoteBody { version, force } = body(&state, request).await?;
    with(&state, move |store| prompts::stop(store, &name, Some(version), force, &author)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Nothing.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct StopBody {}

/// Ends an experiment
///
/// The version with the label `production` is served from now on.
#[utoipa::path(
    post,
    path = "/experiments/{name}/stop",
    operation_id = "experiments_stop",
    tag = "prompts",
    params(("name" = String, Path, description = "The name of the experiment")),
    request_body(content = StopBody, content_type = "application/json", example = json!({})),
    responses((status = NO_CONTENT, description = "It is ended"), LibraryChangeProblems),
)]
pub(in crate::http) async fn stop(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let author = person(&state, &request);
    let StopBody {} = body(&state, request).await?;
    with(&state, move |store| prompts::stop(store, &name, None, false, &author)).await?;
    Ok(StatusCode::NO_CONTENT)
}

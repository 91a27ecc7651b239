//! `/prompts…` and `/experiments…`: prompts with versions, and experiments with them.
//!
//! `experiments` starts, reports and ends experiments; `resolve` finds the version for a caption.

pub(super) mod experiments;
mod resolve;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use cutline_library::prompts::{LabelMove, Prompt, PromptVersion, no_prompt};
use cutline_library::whole::or_null;
use cutline_library::{Author, ContentHash, Store};
use cutline_prompts::{Content, Kind, Part, Reference, Variables, difference};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(super) use self::resolve::{Templates, resolved};
use super::error::Failure;
use super::library::edit::body;
use super::library::{Parameters, person, with};
use super::openapi::errors::{LibraryChangeProblems, LibraryProblems};
use super::state::AppState;
use crate::captioner::facts;
use crate::prompts;
use cutline_error::{Error, Result};
use cutline_image::{Colors, Mood};

/// A version of a prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionAnswer {
    /// Its number.
    version: u32,
    content: Content,
    /// The hash of the content.
    digest: String,
    /// Why it was made.
    message: String,
    author: Author,
    /// When, in milliseconds since 1970.
    created_at: i64,
}

impl VersionAnswer {
    fn of(version: &PromptVersion) -> Result<Self> {
        Ok(Self {
            version: version.version,
            content: prompts::content(version)?,
            digest: version.digest.clone(),
            message: version.message.clone(),
            author: version.author.clone(),
            created_at: version.created_at,
        })
    }
}

/// A prompt with its versions, and the moves of its labels.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PromptAnswer {
    prompt: Prompt,
    /// The newest first.
    versions: Vec<VersionAnswer>,
    /// The newest first.
    moves: Vec<LabelMove>,
}

/// Lists the prompts
#[utoipa::path(
    get,
    path = "/prompts",
    operation_id = "prompts_list",
    tag = "prompts",
    responses((status = OK, description = "The prompts, by name", body = [Prompt]), LibraryProblems),
)]
pub(super) async fn list(State(state): State<AppState>) -> Result<Json<Vec<Prompt>>, Failure> {
    Ok(Json(with(&state, |store| store.prompts()).await?))
}

/// Reads a prompt
///
/// All its versions, labels, and the moves of its labels.
#[utoipa::path(
    get,
    path = "/prompts/{name}",
    operation_id = "prompts_show",
    tag = "prompts",
    params(("name" = String, Path, description = "The name of the prompt")),
    responses((status = OK, description = "The prompt", body = PromptAnswer), LibraryProblems),
)]
pub(super) async fn show(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<PromptAnswer>, Failure> {
    let read = move |store: &dyn Store| -> Result<PromptAnswer> {
        let found = store.prompt(&name)?.ok_or_else(|| no_prompt(&name))?;
        let versions = found.versions.iter().map(VersionAnswer::of).collect::<Result<_>>()?;
        Ok(PromptAnswer { prompt: found.prompt, versions, moves: found.moves })
    };
    Ok(Json(with(&state, read).await?))
}

/// A version that is saved.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SaveBody {
    content: Content,
    /// Why it is made.
    #[serde(default)]
    message: String,
    /// What the prompt is for; as before if not given.
    #[serde(default)]
    description: Option<String>,
}

/// The number of a version.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Saved {
    /// The number.
    version: u32,
}

/// Saves a version of a prompt
///
/// And the prompt, if there is none of this name. Nothing is saved if the newest version says the same.
#[utoipa::path(
    post,
    path = "/prompts/{name}/versions",
    operation_id = "prompts_save",
    tag = "prompts",
    params(("name" = String, Path, description = "The name of the prompt")),
    request_body(content = SaveBody, content_type = "application/json", example = json!({
        "content": {"kind": "prefix", "template": "a photo of a {{ breed }}"},
        "message": "name the breed",
    })),
    responses((status = CREATED, description = "The version", body = Saved), LibraryChangeProblems),
)]
pub(super) async fn save(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Saved>), Failure> {
    let author = person(&state, &request);
    let SaveBody { content, message, description } = body(&state, request).await?;
    let version = with(&state, move |store| {
        prompts::save(store, &name, description, content, message, &author)
    });
    Ok((StatusCode::CREATED, Json(Saved { version: version.await? })))
}

/// A label that is moved.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LabelBody {
    /// `production`, `staging`, or another one.
    label: String,
    /// The version that gets it; without one it is removed.
    #[serde(default, deserialize_with = "or_null")]
    version: Option<u32>,
    /// Whether it moves only with `force` from now on; as before if not given.
    #[serde(default)]
    protected: Option<bool>,
    /// Whether it is moved even if it is protected.
    #[serde(default)]
    force: bool,
}

/// Moves a label of a prompt
///
/// What asks for the prompt without a label gets the version with the label `production`. To roll back, give
/// the label to the version that had it before.
#[utoipa::path(
    post,
    path = "/prompts/{name}/labels",
    operation_id = "prompts_label",
    tag = "prompts",
    params(("name" = String, Path, description = "The name of the prompt")),
    request_body(content = LabelBody, content_type = "application/json",
                 example = json!({"label": "production", "version": 1})),
    responses((status = NO_CONTENT, description = "It is moved"), LibraryChangeProblems),
)]
pub(super) async fn label(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let author = person(&state, &request);
    let LabelBody { label, version, protected, force } = body(&state, request).await?;
    with(&state, move |store| {
        prompts::move_label(store, &name, &label, version, protected, force, &author)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The differences between two versions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DiffAnswer {
    /// The number of the first.
    from: u32,
    /// The number of the second.
    to: u32,
    /// Their templates, or if both have none, what they say as JSON, in parts.
    parts: Vec<Part>,
}

/// Compares two versions of a prompt
#[utoipa::path(
    get,
    path = "/prompts/{name}/diff",
    operation_id = "prompts_diff",
    tag = "prompts",
    params(
        ("name" = String, Path, description = "The name of the prompt"),
        ("from" = String, Query, description = "The number or a label of the first version"),
        ("to" = String, Query, description = "The number or a label of the second version"),
    ),
    responses((status = OK, description = "The differences", body = DiffAnswer), LibraryProblems),
)]
pub(super) async fn diff(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<DiffAnswer>, Failure> {
    let parameters = Parameters::read(request.uri().query(), &["from", "to"])?;
    let [from, to] = ["from", "to"].map(|which| version_reference(&name, parameters.text(which)));
    let (from, to) = (from?, to?);
    let compare = move |store: &dyn Store| -> Result<DiffAnswer> {
        let (one, two) = (prompts::version(store, &from)?, prompts::version(store, &to)?);
        let parts = difference(&text_of(&one)?, &text_of(&two)?);
        Ok(DiffAnswer { from: one.version, to: two.version, parts })
    };
    Ok(Json(with(&state, compare).await?))
}

fn version_reference(name: &str, which: &str) -> Result<Reference> {
    let digits = !which.is_empty() && which.bytes().all(|byte| byte.is_ascii_digit());
    let sign = if digits { ':' } else { '@' };
    format!("{name}{sign}{which}").parse()
}

/// What two versions are compared by.
fn text_of(version: &PromptVersion) -> Result<String> {
    let content = prompts::content(version)?;
    if content.kind == Kind::Style {
        return Ok(version.content.clone());
    }
    Ok(content.template)
}

/// What is rendered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RenderBody {
    /// A version that is saved; either this or `content`.
    #[serde(default)]
    template: Option<String>,
    /// A version that is not.
    #[serde(default)]
    content: Option<Content>,
    /// The variables.
    #[serde(default)]
    #[schema(value_type = Object)]
    variables: Variables,
    /// A photo of the library, for what it knows about it.
    #[serde(default)]
    photo: Option<String>,
    /// A caption, for a chain.
    #[serde(default)]
    caption: Option<String>,
}

/// What a version says.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rendered {
    /// The text of the template.
    text: String,
    /// What the version says.
    content: Content,
}

/// Shows what a version of a prompt says
///
/// With these variables. Nothing is saved, and nothing is captioned.
#[utoipa::path(
    post,
    path = "/prompts/render",
    operation_id = "prompts_render",
    tag = "prompts",
    request_body(content = RenderBody, content_type = "application/json", example = json!({
        "content": {"kind": "chain", "template": "{{ title }} #{{ keywords | join(' #') }}"},
        "caption": "a dog on a beach",
    })),
    responses((status = OK, description = "The text", body = Rendered), LibraryChangeProblems),
)]
pub(super) async fn render(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Rendered>, Failure> {
    let RenderBody { template, content, variables, photo, caption } = body(&state, request).await?;
    let photo = photo.map(|photo| photo.parse::<ContentHash>()).transpose()?;
    let reference = template.map(|template| template.parse::<Reference>()).transpose()?;
    let work = move |store: &dyn Store| -> Result<Rendered> {
        let content = match (reference, content) {
            (Some(reference), None) => prompts::content(&prompts::version(store, &reference)?)?,
            (None, Some(content)) => prompts::checked(content)?,
            _ => {
                return Err(Error::parameter("template", "give either template or content"));
            }
        };
        let mut context = prompts::about(store, photo.as_ref())?;
        if content.kind == Kind::Chain {
            let colors = Colors { colors: Vec::new(), mood: Mood::of(&[]) };
            context.extend(facts(&caption.unwrap_or_default(), &colors));
        }
        Ok(Rendered { text: content.render(&variables, &context)?, content })
    };
    Ok(Json(with(&state, work).await?))
}

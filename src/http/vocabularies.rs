//! `/vocabularies…`: allowed tags with versions.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use cutline_library::Store;
use cutline_library::vocabularies::{StoredVocabulary, VocabularyVersion, no_vocabulary};
use cutline_library::whole::number;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::error::Failure;
use super::library::edit::body;
use super::library::{Parameters, person, with};
use super::openapi::errors::{LibraryChangeProblems, LibraryProblems};
use super::state::AppState;
use crate::vocabularies;
use cutline_error::{Error, ErrorKind, Result};
use cutline_tags::{FIELD, Reference, Vocabulary};

/// A vocabulary with its versions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VocabularyAnswer {
    vocabulary: StoredVocabulary,
    /// The number of the version whose content this is.
    version: u32,
    /// What that version says, as a request for tags would.
    #[schema(value_type = Object)]
    content: Box<RawValue>,
    /// The newest first.
    versions: Vec<VocabularyVersion>,
}

/// Lists the vocabularies
#[utoipa::path(
    get,
    path = "/vocabularies",
    operation_id = "vocabularies_list",
    tag = "tags",
    responses(
        (status = OK, description = "The vocabularies, by name", body = [StoredVocabulary]),
        LibraryProblems,
    ),
)]
pub(super) async fn list(
    State(state): State<AppState>,
) -> Result<Json<Vec<StoredVocabulary>>, Failure> {
    Ok(Json(with(&state, |store| store.vocabularies()).await?))
}

/// Reads a vocabulary
///
/// All its versions, and what one of them says: the one that counts, unless the request names another.
#[utoipa::path(
    get,
    path = "/vocabularies/{name}",
    operation_id = "vocabularies_show",
    tag = "tags",
    params(
        ("name" = String, Path, description = "The name of the vocabulary"),
        ("version" = Option<u32>, Query, description = "The number of a version"),
    ),
    responses((status = OK, description = "The vocabulary", body = VocabularyAnswer), LibraryProblems),
)]
pub(super) async fn show(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<VocabularyAnswer>, Failure> {
    let parameters = Parameters::read(request.uri().query(), &["version"])?;
    let version = parameters.parsed("version", "the number of a version")?;
    let read = move |store: &dyn Store| -> Result<VocabularyAnswer> {
        let found = store.vocabulary(&name)?.ok_or_else(|| no_vocabulary(&name))?;
        let kept = vocabularies::find(store, &Reference { name, version })?;
        let content = RawValue::from_string(kept.stored.content).map_err(|error| {
            let detail = format!("{} is no JSON; save it again", kept.reference);
            Error::new(ErrorKind::Io, detail).with_source(error)
        })?;
        Ok(VocabularyAnswer {
            vocabulary: found.vocabulary,
            version: kept.stored.version.version,
            content,
            versions: found.versions,
        })
    };
    Ok(Json(with(&state, read).await?))
}

/// A version that is saved.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VocabularyBody {
    /// What it says: `{"categories": [{"name", "tags": ["dog", {"name", "synonyms"}], "k", "threshold",
    /// "template"}]}`, a list of tags, or lines of text.
    #[schema(schema_with = vocabulary_schema)]
    vocabulary: Box<RawValue>,
    /// Why it is made.
    #[serde(default)]
    message: String,
}

fn vocabulary_schema() -> utoipa::openapi::schema::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    ObjectBuilder::new()
        .schema_type(SchemaType::Array(vec![Type::Object, Type::Array, Type::String]))
        .description(Some(
            "What it says: `{\"categories\": [{\"name\", \"tags\": [\"dog\", {\"name\", \"synonyms\"}], \"k\", \
             \"threshold\", \"template\"}]}`, a list of tags, or lines of text.",
        ))
        .build()
}

/// The number of a version.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SavedVocabulary {
    /// The number.
    version: u32,
}

/// Saves a version of a vocabulary
///
/// And the vocabulary, if there is none of this name. The version counts from now on. Nothing is saved if the
/// newest version says the same, but that counts then.
#[utoipa::path(
    post,
    path = "/vocabularies/{name}/versions",
    operation_id = "vocabularies_save",
    tag = "tags",
    params(("name" = String, Path, description = "The name of the vocabulary")),
    request_body(content = VocabularyBody, content_type = "application/json", example = json!({
        "vocabulary": {"categories": [{"name": "animals", "tags": ["dog", "cat"], "k": 2}]},
        "message": "cats as well",
    })),
    responses(
        (status = CREATED, description = "The version", body = SavedVocabulary),
        LibraryChangeProblems,
    ),
)]
pub(super) async fn save(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<SavedVocabulary>), Failure> {
    let author = person(&state, &request);
    let VocabularyBody { vocabulary, message } = body(&state, request).await?;
    let save = move |store: &dyn Store| {
        let vocabulary = vocabulary_of(vocabulary.get())?;
        vocabularies::save(store, &name, &vocabulary, message, &author)
    };
    let version = with(&state, save).await?;
    Ok((StatusCode::CREATED, Json(SavedVocabulary { version })))
}

/// A string has lines of text.
fn vocabulary_of(json: &str) -> Result<Vocabulary> {
    if !json.starts_with('"') {
        return Vocabulary::from_json(json);
    }
    let text: String = serde_json::from_str(json).map_err(|error| {
        Error::parameter(FIELD, "the vocabulary is not a string of JSON; correct it")
            .with_source(error)
    })?;
    Vocabulary::parse(text.as_bytes())
}

/// The version that is to count.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChoiceBody {
    /// The number of the version.
    #[serde(deserialize_with = "number")]
    current: u32,
}

/// Chooses the version that counts
///
/// Requests that name the vocabulary without a version get this one from now on. To roll back, choose the
/// version that counted before.
#[utoipa::path(
    patch,
    path = "/vocabularies/{name}",
    operation_id = "vocabularies_choose",
    tag = "tags",
    params(("name" = String, Path, description = "The name of the vocabulary")),
    request_body(content = ChoiceBody, content_type = "application/json",
                 example = json!({"current": 1})),
    responses((status = NO_CONTENT, description = "It counts"), LibraryChangeProblems),
)]
pub(super) async fn choose(
    State(state): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let ChoiceBody { current } = body(&state, request).await?;
    with(&state, move |store| vocabularies::choose(store, &name, current)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a vocabulary
///
/// With all its versions. Their numbers are not used again.
#[utoipa::path(
    delete,
    path = "/vocabularies/{name}",
    operation_id = "vocabularies_delete",
    tag = "tags",
    params(("name" = String, Path, description = "The name of the vocabulary")),
    responses((status = NO_CONTENT, description = "It is removed"), LibraryChangeProblems),
)]
pub(super) async fn delete(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    with(&state, move |store| vocabularies::delete(store, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

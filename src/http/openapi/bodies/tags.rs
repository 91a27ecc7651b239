//! Bodies and query parameters of requests for tags.

use std::borrow::Cow;

use serde_json::Value;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{Object, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Required};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::{base64, file, form, nullable, object, url, url_parameter};
use crate::captioner::{TagFields, TagStrategy};
use cutline_tags::MAX_K;

body! {
    TagForm: form("image", file(), url(), texts());
    TagRequest: object("image", base64(), values());
    TagUrlRequest: object("image_url", url(), values());
}

either! {
    TagJson: TagRequest, TagUrlRequest;
}

/// The parameters in the query string.
pub(in crate::http) struct TagQuery;

impl IntoParams for TagQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<utoipa::openapi::path::Parameter> {
        let parameters = texts().into_iter().map(|(name, mut schema)| {
            let description = schema.description.take();
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(description)
                .schema(Some(schema))
                .build()
        });
        [url_parameter()].into_iter().chain(parameters).collect()
    }
}

/// The parameters in JSON.
fn values() -> Vec<(&'static str, Object)> {
    let mut all = texts();
    if let Some((_, vocabulary)) = all.first_mut() {
        vocabulary.schema_type =
            SchemaType::Array(vec![Type::Object, Type::Array, Type::String, Type::Null]);
    }
    all
}

/// The parameters in forms and query strings.
fn texts() -> Vec<(&'static str, Object)> {
    let one = |kind: Type, description: &str| {
        ObjectBuilder::new().schema_type(kind).description(Some(description))
    };
    let strategies = TagStrategy::ALL.map(|strategy| Value::from(strategy.as_str()));
    vec![
        (
            TagFields::NESTED,
            one(
                Type::String,
                "The tags that are allowed: `{\"categories\": [{\"name\", \"tags\": [\"dog\", {\"name\", \
                 \"synonyms\"}], \"k\", \"threshold\", \"template\"}]}`, or a list of tags. Lines of text are \
                 accepted too, and `library:NAME` or `library:NAME:VERSION` for a vocabulary of the library. \
                 Without it, those of TAG_VOCABULARY, or tags for everyday photos.",
            )
            .max_length(Some(TagFields::MAX_VOCABULARY))
            .build(),
        ),
        (
            "strategy",
            nullable(
                &one(
                    Type::String,
                    "How tags are found: by words of `caption`s, by how probable the model finds each \
                     (`likelihood`), by the accepted tags of similar photos in the library (`similarity`), \
                     or by everything together (`hybrid`). `auto`, the default, is `hybrid`.",
                )
                .enum_values(Some(strategies))
                .build(),
            ),
        ),
        (
            "k",
            nullable(
                &one(
                    Type::Integer,
                    "The most tags of a category, instead of its own number.",
                )
                .minimum(Some(1))
                .maximum(Some(MAX_K))
                .build(),
            ),
        ),
        (
            "min_score",
            nullable(
                &one(Type::Number, "The least score of a tag, instead of the categories' own.")
                    .minimum(Some(0))
                    .maximum(Some(1))
                    .build(),
            ),
        ),
        ("explain", nullable(&one(Type::Boolean, "Say why, in `evidence`.").build())),
        (
            "unsupported",
            nullable(
                &one(
                    Type::Boolean,
                    "Consider tags whose words were never in the captions of the model's training.",
                )
                .build(),
            ),
        ),
        (
            "model",
            nullable(
                &one(
                    Type::String,
                    "The model, by one of its names at `GET /model/info`, if there are several.",
                )
                .build(),
            ),
        ),
    ]
}

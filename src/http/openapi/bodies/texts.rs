//! Bodies and query parameters of requests with texts and with questions.

use std::borrow::Cow;

use serde_json::Value;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{Object, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Required};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::{base64, closed, file, form, nullable, nullable_text, object, url, url_parameter};
use crate::captioner::{Parameter, ScoreMode, TEXT_TOKENS, TextFields, TextUse};

body! {
    ScoreForm: form("image", file(), url(), texts(TextUse::Score));
    ScoreRequest: object("image", base64(), values(TextUse::Score));
    ScoreUrlRequest: object("image_url", url(), values(TextUse::Score));
    EmbedForm: form("image", file(), url(), texts(TextUse::Embed));
    EmbedRequest: object("image", base64(), values(TextUse::Embed));
    EmbedUrlRequest: object("image_url", url(), values(TextUse::Embed));
    EmbedTextsRequest: closed(ObjectBuilder::new().required("texts"), values(TextUse::Embed));
    QuestionForm: form("image", file(), url(), texts(TextUse::Ask));
    QuestionRequest: object("image", base64(), values(TextUse::Ask));
    QuestionUrlRequest: object("image_url", url(), values(TextUse::Ask));
}

either! {
    ScoreJson: ScoreRequest, ScoreUrlRequest;
    QuestionJson: QuestionRequest, QuestionUrlRequest;
}

/// An image, or texts alone.
pub(in crate::http) struct EmbedJson;

impl PartialSchema for EmbedJson {
    fn schema() -> RefOr<Schema> {
        let names = ["EmbedRequest", "EmbedUrlRequest", "EmbedTextsRequest"];
        let any = names.map(Ref::from_schema_name).into_iter();
        any.fold(OneOfBuilder::new(), OneOfBuilder::item).into()
    }
}

impl ToSchema for EmbedJson {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("EmbedRequest".to_owned(), EmbedRequest::schema()));
        schemas.push(("EmbedUrlRequest".to_owned(), EmbedUrlRequest::schema()));
        schemas.push(("EmbedTextsRequest".to_owned(), EmbedTextsRequest::schema()));
    }
}

/// Declares the parameters in the query string.
macro_rules! query {
    ($($name:ident: $of:expr;)+) => {$(
        pub(in crate::http) struct $name;

        impl IntoParams for $name {
            fn into_params(
                _: impl Fn() -> Option<ParameterIn>,
            ) -> Vec<utoipa::openapi::path::Parameter> {
                let parameters = texts($of).into_iter().map(parameter);
                [url_parameter()].into_iter().chain(parameters).collect()
            }
        }
    )+};
}

query! {
    ScoreQuery: TextUse::Score;
    EmbedQuery: TextUse::Embed;
    QuestionQuery: TextUse::Ask;
}

fn parameter((name, mut schema): (&'static str, Object)) -> utoipa::openapi::path::Parameter {
    let mut description = schema.description.take().unwrap_or_default();
    if let Some(default) = schema.default.take() {
        description += &format!(" The default is {default}.");
    }
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

/// The parameters in JSON.
fn values(of: TextUse) -> Vec<(&'static str, Object)> {
    let own = own(of).into_iter().map(|(name, mut schema)| {
        if of.is_list(name) {
            schema.schema_type = SchemaType::Array(vec![Type::Array, Type::String, Type::Null]);
        }
        if name == "question" {
            schema = nullable(&schema);
        }
        (name, schema)
    });
    own.chain(others(of, nullable)).collect()
}

/// The parameters in forms and query strings.
fn texts(of: TextUse) -> Vec<(&'static str, Object)> {
    own(of).into_iter().chain(others(of, nullable_text)).collect()
}

/// The parameters that requests with questions share with those for captions.
fn others(
    of: TextUse,
    write: fn(&Object) -> Object,
) -> impl Iterator<Item = (&'static str, Object)> {
    let names = of.names();
    // Which models there are to choose from is not the same.
    let shared = Parameter::all()
        .iter()
        .filter(move |parameter| parameter.name() != "model" && names.contains(&parameter.name()));
    shared.map(move |parameter| (parameter.name(), write(parameter.schema())))
}

fn own(of: TextUse) -> Vec<(&'static str, Object)> {
    let one = |kind: Type, description: &str| {
        ObjectBuilder::new().schema_type(kind).description(Some(description))
    };
    let list = |what: &str| {
        let description = format!(
            "{what}, 1 to {}. In a form or a query string a list of JSON, or one a line.",
            of.most()
        );
        one(Type::String, &description).max_length(Some(TextFields::MAX_BYTES)).build()
    };
    let modes = ScoreMode::ALL.map(|mode| Value::from(mode.as_str()));
    let mode = one(
        Type::String,
        "What is said about each text: the probability that it matches (`itm`), the cosine of the \
         embeddings (`itc`), which is faster, or both.",
    );
    let [least, most] = TEXT_TOKENS;
    let max_text_tokens = one(
        Type::Integer,
        "Texts are cut to this many word pieces, the two special ones included. Without it, a text that is \
         longer than the model can read is refused.",
    );
    let max_text_tokens = max_text_tokens.minimum(Some(least)).maximum(Some(most)).build();
    let model = nullable(
        &one(
            Type::String,
            "Name of a model of this server that can do this; the first one that can if not given.",
        )
        .build(),
    );
    match of {
        TextUse::Score => vec![
            ("texts", list("Texts to compare with the image")),
            ("mode", nullable(&mode.enum_values(Some(modes)).build())),
            ("max_text_tokens", nullable(&max_text_tokens)),
            ("model", model),
        ],
        TextUse::Embed => vec![
            ("texts", list("Texts to embed")),
            ("max_text_tokens", nullable(&max_text_tokens)),
            ("model", model),
        ],
        TextUse::Ask => vec![
            ("question", one(Type::String, "A question about the image.").build()),
            ("questions", list("Several questions, instead of one")),
            ("model", model),
        ],
    }
}

//! The request bodies and query parameters that the handlers' documentation names.
//!
//! All of them are built from the declarations in [`Parameter`], so a parameter is described once.

use std::borrow::Cow;

use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, KnownFormat, Object, ObjectBuilder, OneOfBuilder, Schema,
    SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr, Required};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::captioner::Parameter;
use crate::fetch::{MAX_URL_BYTES, URL_FIELD};
use crate::http::library::regenerate::MEANINGLESS;

/// A red square of 8 × 8 pixels as PNG, in base64.
pub(in crate::http) const SQUARE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mM4YKCAFTEMLQkAuk5EAZTx2AYAAAAASUVORK5CYII=";

/// No file of fewer bytes, and so no text of fewer characters, is an image in any supported format.
const SHORTEST_IMAGE: usize = 16;

/// Declares a body: an object with the field that holds the image or images, and parameters.
macro_rules! body {
    ($($name:ident: $schema:expr;)+) => {$(
        pub(in crate::http) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    )+};
}

body! {
    CaptionForm: form("image", file(), url(), parameters(nullable_text));
    CaptionRequest: object("image", base64(), parameters(nullable));
    BatchForm: form("images", list(file()), list(url()), parameters(nullable_text));
    BatchRequest: object("images", list(base64_or_url()), parameters(nullable));
    ImageForm: form("image", file(), url(), []);
    ImageRequest: object("image", base64(), []);
    CaptionUrlRequest: object("image_url", url(), parameters(nullable));
    ImageUrlRequest: object("image_url", url(), []);
    ImageReference: object("image_url", url(), []);
    RegenerateRequest: closed(ObjectBuilder::new(), regenerating());
    RegenerateManyRequest: closed(selection(), regenerating());
}

/// Declares a JSON body that is one of two.
macro_rules! either {
    ($($name:ident: $one:ident, $other:ident;)+) => {$(
        pub(in crate::http) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let refs = [stringify!($one), stringify!($other)].map(Ref::from_schema_name);
                OneOfBuilder::new().item(refs[0].clone()).item(refs[1].clone()).into()
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                schemas.push((stringify!($one).to_owned(), $one::schema()));
                schemas.push((stringify!($other).to_owned(), $other::schema()));
            }
        }
    )+};
}

mod tags;
mod texts;

pub(in crate::http) use self::tags::{TagForm, TagJson, TagQuery};
pub(in crate::http) use self::texts::{
    EmbedForm, EmbedJson, EmbedQuery, QuestionForm, QuestionJson, QuestionQuery, ScoreForm,
    ScoreJson, ScoreQuery,
};

either! {
    CaptionJson: CaptionRequest, CaptionUrlRequest;
    ImageJson: ImageRequest, ImageUrlRequest;
}

/// The bytes of one image.
pub(in crate::http) struct RawImage;

impl PartialSchema for RawImage {
    fn schema() -> RefOr<Schema> {
        binary("The bytes of one image.").into()
    }
}

impl ToSchema for RawImage {}

/// The parameters in the query string.
pub(in crate::http) struct CaptionQuery;

impl IntoParams for CaptionQuery {
    /// Defaults are part of the description: a generated client would send them, and a parameter
    /// that is also in the body is refused.
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<utoipa::openapi::path::Parameter> {
        let parameters = Parameter::all().iter().map(|parameter| {
            let mut schema = nullable_text(parameter.schema());
            let mut description = schema.description.take().unwrap_or_default();
            if let Some(default) = schema.default.take() {
                description += &format!(" The default is {default}.");
            }
            ParameterBuilder::new()
                .name(parameter.name())
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some(description))
                .schema(Some(schema))
                .build()
        });
        [url_parameter()].into_iter().chain(parameters).collect()
    }
}

/// The address of an image in the query string.
pub(in crate::http) struct ImageQuery;

impl IntoParams for ImageQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<utoipa::openapi::path::Parameter> {
        vec![url_parameter()]
    }
}

fn url_parameter() -> utoipa::openapi::path::Parameter {
    let mut schema = nullable(&url());
    ParameterBuilder::new()
        .name(URL_FIELD)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(schema.description.take())
        .schema(Some(schema))
        .build()
}

fn object(
    field: &str,
    image: impl Into<RefOr<Schema>>,
    parameters: impl IntoIterator<Item = (&'static str, Object)>,
) -> RefOr<Schema> {
    closed(ObjectBuilder::new().property(field, image).required(field), parameters)
}

/// A form with an image or its address. Generators of clients lose the type of the file if the schema
/// says that one of the two is required.
fn form(
    field: &str,
    image: impl Into<RefOr<Schema>>,
    url: impl Into<RefOr<Schema>>,
    parameters: impl IntoIterator<Item = (&'static str, Object)>,
) -> RefOr<Schema> {
    let either = format!("Either {field} or {URL_FIELD} is required.");
    let first = ObjectBuilder::new().description(Some(either)).property(field, image);
    closed(first.property(URL_FIELD, url), parameters)
}

/// Adds the parameters; there are no other properties.
fn closed(
    first: ObjectBuilder,
    parameters: impl IntoIterator<Item = (&'static str, Object)>,
) -> RefOr<Schema> {
    parameters
        .into_iter()
        .fold(first, |object, (name, schema)| object.property(name, schema))
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .into()
}

/// The schema for forms and query strings, where the text null means null, except in free text.
fn nullable_text(schema: &Object) -> Object {
    let is_text = matches!(schema.schema_type, SchemaType::Type(Type::String));
    if is_text && schema.enum_values.is_none() { schema.clone() } else { nullable(schema) }
}

/// The parameters of a caption, each with its schema as `write` writes it.
fn parameters(write: fn(&Object) -> Object) -> impl Iterator<Item = (&'static str, Object)> {
    Parameter::all().iter().map(move |parameter| (parameter.name(), write(parameter.schema())))
}

/// The parameters that mean something for captions that are not answers.
fn regenerating() -> impl Iterator<Item = (&'static str, Object)> {
    parameters(nullable).filter(|(name, _)| !MEANINGLESS.contains(name))
}

/// Which photos of the library are meant.
fn selection() -> ObjectBuilder {
    let schema = |kind: Type, description: &str| {
        ObjectBuilder::new().schema_type(kind).description(Some(description))
    };
    let hash = ObjectBuilder::new().schema_type(Type::String);
    let photos = ArrayBuilder::new().items(hash).description(Some("The hashes of the photos."));
    ObjectBuilder::new()
        .description(Some("Either q or photos is required."))
        .property("q", schema(Type::String, "All photos that this search finds."))
        .property("photos", photos)
        .property("dry_run", schema(Type::Boolean, "Only count the photos."))
}

/// The schema that allows null as well: in JSON, a parameter that is null is not given.
fn nullable(schema: &Object) -> Object {
    let mut schema = schema.clone();
    if let SchemaType::Type(own) = &schema.schema_type {
        schema.schema_type = SchemaType::Array(vec![own.clone(), Type::Null]);
    }
    if let Some(choices) = &mut schema.enum_values {
        choices.push(serde_json::Value::Null);
    }
    schema
}

fn binary(description: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
        .description(Some(description))
        .build()
}

fn file() -> Object {
    binary("The image file. The part may also be named file.")
}

fn base64() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Byte)))
        .content_encoding("base64")
        .description(Some("An image in base64, or a data: URI."))
        // Nothing shorter is an image.
        .min_length(Some(SHORTEST_IMAGE))
        .build()
}

fn url() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::Custom("uri".to_owned())))
        .description(Some(
            "The address of an image, instead of the image, if the server's setting FETCH_URLS allows \
             that.",
        ))
        .max_length(Some(MAX_URL_BYTES))
        .build()
}

fn base64_or_url() -> Schema {
    let reference = Ref::from_schema_name("ImageReference");
    Schema::OneOf(OneOfBuilder::new().item(base64()).item(reference).build())
}

/// At least one; the setting `MAX_IMAGES_PER_REQUEST` limits how many.
fn list(of: impl Into<RefOr<Schema>>) -> Schema {
    Schema::Array(ArrayBuilder::new().items(of.into()).min_items(Some(1)).build())
}

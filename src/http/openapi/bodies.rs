//! The three ways of sending images, with the parameters that go with them.

use serde_json::json;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat,
    Type,
};
use utoipa::openapi::{Components, ContentBuilder, OpenApi, Ref, RefOr, Required};

use crate::captioner::Parameter;

/// A red square of 8 × 8 pixels as PNG, in base64.
const SQUARE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mM4YKCAFTEMLQkAuk5EAZTx2AYAAAAASUVORK5CYII=";

/// Puts parameters and bodies into the operations that take images.
pub(super) fn describe(contract: &mut OpenApi) {
    let each = Parameter::all().iter();
    let parameters = each
        .fold(ObjectBuilder::new(), |object, one| object.property(one.name(), one.schema().clone()))
        .build();
    let none = Object::default();
    let components = contract.components.get_or_insert_with(Components::default);
    let mut name = |name: &'static str, object: Object| {
        components.schemas.insert(name.to_owned(), object.into());
        Ref::from_schema_name(name)
    };
    let one = Ways {
        form: name("CaptionForm", with("image", file(), &parameters)),
        json: name("CaptionRequest", with("image", base64(), &parameters)),
        example: json!({"image": SQUARE, "max_new_tokens": 10}),
    };
    let many = Ways {
        form: name("BatchForm", with("images", list(file()), &parameters)),
        json: name("BatchRequest", with("images", list(base64()), &parameters)),
        example: json!({"images": [SQUARE], "num_beams": 3}),
    };
    let alone = Ways {
        form: name("ImageForm", with("image", file(), &none)),
        json: name("ImageRequest", with("image", base64(), &none)),
        example: json!({"image": SQUARE}),
    };
    for (path, ways, parameters) in [
        ("/caption/generate", one, &parameters),
        ("/caption/batch", many, &parameters),
        ("/image/process", alone, &none),
    ] {
        let item = contract.paths.paths.get_mut(path);
        if let Some(post) = item.and_then(|item| item.post.as_mut()) {
            query(post, parameters);
            post.request_body = Some(ways.body().into());
        }
    }
}

struct Ways {
    form: Ref,
    json: Ref,
    example: serde_json::Value,
}

impl Ways {
    fn body(self) -> RequestBody {
        let raw = || ContentBuilder::new().schema(Some(binary("The bytes of one image."))).build();
        let json = ContentBuilder::new().schema(Some(self.json)).example(Some(self.example));
        RequestBodyBuilder::new()
            .required(Some(Required::True))
            .content("multipart/form-data", ContentBuilder::new().schema(Some(self.form)).build())
            .content("application/json", json.build())
            .content("image/*", raw())
            .content("application/octet-stream", raw())
            .build()
    }
}

/// `parameters` and, before them, the images.
fn with(name: &str, images: impl Into<RefOr<Schema>>, parameters: &Object) -> Object {
    let first = ObjectBuilder::new().property(name, images).required(name);
    let each = parameters.properties.iter();
    each.fold(first, |object, (name, schema)| object.property(name, schema.clone()))
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .build()
}

fn binary(description: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
        .description(Some(description))
        .build()
}

fn file() -> Object {
    binary("The file of an image; the part may also be called file.")
}

fn base64() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Byte)))
        .content_encoding("base64")
        .description(Some("An image in base64, or a data: URI."))
        .build()
}

/// One to as many as `MAX_IMAGES_PER_REQUEST` says.
fn list(of: Object) -> Schema {
    Schema::Array(ArrayBuilder::new().items(of).min_items(Some(1)).build())
}

/// The parameters in the query string, for images that are sent as raw bytes. Their defaults are told
/// in words: a generated client would send them, and a parameter that is in the body too is refused.
fn query(operation: &mut Operation, parameters: &Object) {
    let each = parameters.properties.iter().map(|(name, schema)| {
        let mut schema = schema.clone();
        let description = match &mut schema {
            RefOr::T(Schema::Object(object)) => described(object),
            _ => None,
        };
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(description)
            .schema(Some(schema))
            .build()
    });
    operation.parameters.get_or_insert_default().extend(each.map(Into::into));
}

/// Takes description and default out of `object`.
fn described(object: &mut Object) -> Option<String> {
    let description = object.description.take()?;
    Some(match object.default.take() {
        Some(default) => format!("{description} The default is {default}."),
        None => description,
    })
}

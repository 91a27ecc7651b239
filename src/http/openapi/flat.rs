//! Turns composed schemas into plain objects.
//!
//! `#[serde(flatten)]` becomes `allOf`, for which few client generators produce a natural type. An
//! optional part becomes "this or null", which an answer without the part does not match.

use utoipa::openapi::schema::{Object, OneOf, Schema};
use utoipa::openapi::{Components, RefOr};

/// Replaces every schema that is composed of objects by one object.
pub(super) fn flatten(components: &mut Components) {
    let names: Vec<String> = components.schemas.keys().cloned().collect();
    for name in names {
        let Some(RefOr::T(Schema::AllOf(all))) = components.schemas.get(&name) else { continue };
        let mut variants = vec![Object::default()];
        // Its own properties come first.
        let (own, taken): (Vec<_>, Vec<_>) =
            all.items.iter().partition(|part| matches!(part, RefOr::T(Schema::Object(_))));
        for part in own.into_iter().chain(taken) {
            let parts = objects(components, part);
            variants = variants
                .iter()
                .flat_map(|variant| parts.iter().map(|part| merged(variant, part)))
                .collect();
        }
        let description = all.description.clone();
        let schema = if variants.len() > 1 {
            let mut one = OneOf::new();
            one.description = description;
            one.items = variants.into_iter().map(Into::into).collect();
            Schema::OneOf(one)
        } else {
            let mut object = variants.pop().unwrap_or_default();
            object.description = description;
            Schema::Object(object)
        };
        components.schemas.insert(name, schema.into());
    }
}

/// The alternatives of `schema`; their properties are optional where the schema allows null.
fn objects(components: &Components, schema: &RefOr<Schema>) -> Vec<Object> {
    match schema {
        RefOr::Ref(reference) => {
            let name = reference.ref_location.rsplit('/').next().unwrap_or_default();
            let target = components.schemas.get(name);
            target.map_or_else(Vec::new, |target| objects(components, target))
        }
        RefOr::T(Schema::Object(object)) => vec![object.clone()],
        RefOr::T(Schema::AllOf(all)) => {
            let parts = all.items.iter().flat_map(|part| objects(components, part));
            vec![parts.fold(Object::default(), |whole, part| merged(&whole, &part))]
        }
        RefOr::T(Schema::OneOf(one)) => {
            let all: Vec<Object> =
                one.items.iter().flat_map(|item| objects(components, item)).collect();
            let (mut real, null): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|object| !object.properties.is_empty());
            if !null.is_empty() {
                real.iter_mut().for_each(|object| object.required.clear());
            }
            real
        }
        RefOr::T(_) => Vec::new(),
    }
}

fn merged(a: &Object, b: &Object) -> Object {
    let mut both = Object::default();
    for part in [a, b] {
        let each = part.properties.iter().map(|(name, schema)| (name.clone(), schema.clone()));
        both.properties.extend(each);
        both.required.extend(part.required.iter().cloned());
    }
    both
}

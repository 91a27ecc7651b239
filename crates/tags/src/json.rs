//! Vocabularies as JSON. Lists are cut off where they become too long, before they are stored.

use std::fmt;
use std::marker::PhantomData;

use cutline_error::{Error, Result};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::vocabulary::{
    Category, MAX_CATEGORIES, MAX_NAMES, RawCategory, RawTag, Tag, Vocabulary, wrong,
};

/// The category of a vocabulary that is only a list.
const ONLY: &str = "tags";

/// Reads `{"name", "categories": […]}` or a list of tags.
pub(crate) fn read(text: &str) -> Result<(String, Vec<RawCategory>)> {
    let malformed = |error: serde_json::Error| -> Error {
        let at = format!("line {} column {}", error.line(), error.column());
        let why = error.to_string();
        let why = why.split(" at line ").next().unwrap_or_default();
        wrong(format!(
            "{why} ({at}); write {{\"categories\": [{{\"name\": \"animals\", \"tags\": [\"dog\", \
             {{\"name\": \"cat\", \"synonyms\": [\"kitten\"]}}]}}]}}, or a list of tags"
        ))
        .with_source(error)
    };
    if text.trim_start().starts_with('[') {
        let tags: AtMost<RawTag, MAX_NAMES> = serde_json::from_str(text).map_err(malformed)?;
        let only = RawCategory { name: ONLY.into(), tags: tags.0, ..RawCategory::default() };
        return Ok((String::new(), vec![only]));
    }
    let whole: Whole = serde_json::from_str(text).map_err(malformed)?;
    Ok((whole.name, whole.categories.0))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    #[serde(default)]
    name: String,
    categories: AtMost<RawCategory, { MAX_CATEGORIES + 1 }>,
}

/// A list of no more than `MOST` elements.
struct AtMost<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = AtMost<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    if elements.len() == MOST {
                        return Err(de::Error::custom(format!("a list has more than {MOST}")));
                    }
                    elements.push(element);
                }
                Ok(AtMost(elements))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

impl<'de> Deserialize<'de> for RawCategory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields, rename = "category")]
        struct Fields {
            name: String,
            #[serde(alias = "allowed")]
            tags: AtMost<RawTag, MAX_NAMES>,
            k: Option<usize>,
            threshold: Option<f32>,
            template: Option<String>,
        }
        let Fields { name, tags, k, threshold, template } = Fields::deserialize(deserializer)?;
        Ok(Self { name, tags: tags.0, k, threshold, template })
    }
}

/// A name, or an object with synonyms.
impl<'de> Deserialize<'de> for RawTag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrObject;
        impl<'de> Visitor<'de> for NameOrObject {
            type Value = RawTag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tag: its name, or an object with name and synonyms")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<RawTag, E> {
                Ok(RawTag { name: name.to_owned(), synonyms: Vec::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawTag, A::Error> {
                #[derive(serde::Deserialize)]
                #[serde(deny_unknown_fields, rename = "tag")]
                struct Fields {
                    name: String,
                    #[serde(default = "empty")]
                    synonyms: AtMost<String, MAX_NAMES>,
                }
                fn empty() -> AtMost<String, MAX_NAMES> {
                    AtMost(Vec::new())
                }
                let fields = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawTag { name: fields.name, synonyms: fields.synonyms.0 })
            }
        }
        deserializer.deserialize_any(NameOrObject)
    }
}

/// As `read` reads it, with what was left out when it was written.
impl Serialize for Vocabulary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let categories: Vec<_> =
            self.categories().iter().map(|category| CategoryOf { category, of: self }).collect();
        let mut whole = serializer.serialize_struct("Vocabulary", 2)?;
        if self.name().is_empty() {
            whole.skip_field("name")?;
        } else {
            whole.serialize_field("name", self.name())?;
        }
        whole.serialize_field("categories", &categories)?;
        whole.end()
    }
}

struct CategoryOf<'a> {
    category: &'a Category,
    of: &'a Vocabulary,
}

impl Serialize for CategoryOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { category, of } = self;
        let tags: Vec<&Tag> = category.tags().map(|id| of.tag(id)).collect();
        let mut fields = serializer.serialize_struct("Category", 5)?;
        fields.serialize_field("name", category.name())?;
        fields.serialize_field("tags", &tags)?;
        fields.serialize_field("k", &category.k())?;
        match category.threshold() {
            Some(threshold) => fields.serialize_field("threshold", &threshold)?,
            None => fields.skip_field("threshold")?,
        }
        fields.serialize_field("template", category.template().text())?;
        fields.end()
    }
}

/// A name, or an object with synonyms.
impl Serialize for Tag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.synonyms().is_empty() {
            return serializer.serialize_str(self.name());
        }
        let mut fields = serializer.serialize_struct("Tag", 2)?;
        fields.serialize_field("name", self.name())?;
        fields.serialize_field("synonyms", self.synonyms())?;
        fields.end()
    }
}

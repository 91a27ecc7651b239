//! The parameters of a request: those of a caption, of tags, of texts, or none.

use serde_json::Value;

use crate::captioner::{
    CaptionParams, Parameter, ParameterFields, TagFields, TagRequest, TextFields,
};
use cutline_error::{Error, Result};

/// Collects parameters as they arrive.
#[derive(Debug)]
pub(super) enum FormFields {
    /// At an address that takes none.
    None,
    Caption(ParameterFields),
    Tags(Box<TagFields>),
    Texts(Box<TextFields>),
}

impl From<Option<ParameterFields>> for FormFields {
    fn from(params: Option<ParameterFields>) -> Self {
        params.map_or(Self::None, Self::Caption)
    }
}

impl FormFields {
    /// The names of the parameters.
    pub(super) fn names(&self) -> Vec<&'static str> {
        match self {
            Self::None => Vec::new(),
            Self::Caption(_) => Parameter::all().iter().map(Parameter::name).collect(),
            Self::Tags(_) => TagFields::NAMES.to_vec(),
            Self::Texts(params) => params.of().names(),
        }
    }

    /// The parameter that `name` was probably meant to be.
    pub(super) fn similar(&self, name: &str) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Caption(_) => Parameter::similar(name).map(Parameter::name),
            Self::Tags(_) => {
                TagFields::NAMES.into_iter().find(|known| known.eq_ignore_ascii_case(name))
            }
            Self::Texts(params) => {
                params.of().names().into_iter().find(|known| known.eq_ignore_ascii_case(name))
            }
        }
    }

    /// Checks that a parameter of this name is not given yet. `None` if there is no such parameter.
    pub(super) fn expect(&self, name: &str) -> Option<Result<()>> {
        match self {
            Self::Caption(params) if ParameterFields::is_known(name) => Some(params.expect(name)),
            Self::Tags(params) if TagFields::is_known(name) => {
                Some(params.expect(name).map(|_| ()))
            }
            Self::Texts(params) if params.is_known(name) => Some(params.expect(name).map(|_| ())),
            _ => None,
        }
    }

    pub(super) fn add_text(&mut self, name: &str, text: &str) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Caption(params) => params.add_text(name, text),
            Self::Tags(params) => params.add_text(name, text),
            Self::Texts(params) => params.add_text(name, text),
        }
    }

    pub(super) fn add(&mut self, name: &str, value: Value) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Caption(params) => params.add(name, value),
            Self::Tags(params) => params.add(name, value),
            Self::Texts(params) => params.add(name, value),
        }
    }

    /// Adds a parameter whose value is JSON with objects and lists, if this is one.
    pub(super) fn add_nested(&mut self, name: &str, json: &str) -> Option<Result<()>> {
        match self {
            // A string may be lines of text.
            Self::Tags(params) if name == TagFields::NESTED => Some(match text_of(json) {
                Some(text) => params.add_text(name, &text),
                None => params.add_json_vocabulary(json),
            }),
            // An object, where a form has its text.
            Self::Caption(params) if name == "variables" && json.starts_with('{') => {
                Some(params.add_text(name, json))
            }
            Self::Texts(params) if params.of().is_list(name) => Some(params.add_json_list(json)),
            _ => None,
        }
    }

    /// The most bytes of a value in a form.
    pub(super) fn limit(&self, name: &str) -> usize {
        match self {
            Self::Tags(_) if name == TagFields::NESTED => TagFields::MAX_VOCABULARY,
            Self::Texts(params) if params.of().is_list(name) => TextFields::MAX_BYTES,
            _ => ParameterFields::MAX_BYTES,
        }
    }

    /// The parameters together.
    pub(super) fn finish(self) -> Result<Given> {
        match self {
            Self::None => Ok(Given::Caption(CaptionParams::default())),
            Self::Caption(params) => params.finish().map(Given::Caption),
            Self::Tags(params) => Ok(Given::Tags(params.finish())),
            Self::Texts(params) => Ok(Given::Texts(params)),
        }
    }
}

/// What was given, checked.
#[derive(Debug)]
pub(super) enum Given {
    Caption(CaptionParams),
    Tags(TagRequest),
    /// What they say together is checked later.
    Texts(Box<TextFields>),
}

impl Given {
    pub(super) fn caption(self) -> Result<CaptionParams> {
        match self {
            Self::Caption(params) => Ok(params),
            Self::Tags(_) | Self::Texts(_) => {
                Err(Error::internal("a request was read as one for something else"))
            }
        }
    }

    pub(super) fn tags(self) -> Result<TagRequest> {
        match self {
            Self::Tags(request) => Ok(request),
            Self::Caption(_) | Self::Texts(_) => {
                Err(Error::internal("a request for tags was read as another"))
            }
        }
    }

    pub(super) fn texts(self) -> Result<TextFields> {
        match self {
            Self::Texts(fields) => Ok(*fields),
            Self::Caption(_) | Self::Tags(..) => {
                Err(Error::internal("a request with texts was read as another"))
            }
        }
    }
}

/// The text of a JSON string.
fn text_of(json: &str) -> Option<String> {
    if json.starts_with('"') { serde_json::from_str(json).ok() } else { None }
}

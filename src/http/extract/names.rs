//! The names of images in forms and in JSON, and the errors for all other names.

use super::fields::FormFields;
use crate::captioner::shortened;
use crate::fetch::URL_FIELD;
use cutline_error::Error;

/// How many images a request may have.
#[derive(Debug, Clone, Copy)]
pub(super) enum ImageCount {
    One,
    /// At most this many.
    Many(usize),
}

/// Where a name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Query,
    Body,
}

impl ImageCount {
    pub(super) fn most(self) -> usize {
        match self {
            Self::One => 1,
            Self::Many(limit) => limit,
        }
    }

    /// The name of the image or images.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::One => "image",
            Self::Many(_) => "images",
        }
    }

    /// Whether a form part of this name holds an image. Many libraries mark the parts of a list with
    /// brackets: `images[]`, `images[0]`.
    pub(super) fn is_image(self, name: &str) -> bool {
        let own = ["image", "file"];
        let aliases: &[&str] = match self {
            Self::One => &[],
            Self::Many(_) => &["images", "files"],
        };
        own.iter().chain(aliases).any(|alias| alias.eq_ignore_ascii_case(without_index(name)))
    }

    /// Whether a parameter of this name is the address of an image.
    pub(super) fn is_url(self, name: &str) -> bool {
        let name = match self {
            Self::One => name,
            Self::Many(_) => without_index(name),
        };
        URL_FIELD.eq_ignore_ascii_case(name)
    }

    pub(super) fn instructions(self) -> &'static str {
        match self {
            Self::One => {
                "send the image as multipart/form-data in a part named image, as raw bytes with \
                 Content-Type image/* or application/octet-stream, or as application/json with \
                 base64 in the field image"
            }
            Self::Many(_) => {
                "send the images as multipart/form-data in parts named images, or as \
                 application/json with an array of base64 in the field images; a single one may \
                 also be sent as raw bytes with Content-Type image/* or application/octet-stream"
            }
        }
    }

    /// The refusal of a name that is neither an image's nor one of the `parameters` here.
    pub(super) fn unknown(self, name: &str, place: Place, parameters: &FormFields) -> Error {
        let shown = shortened(name);
        let detail = if Self::Many(0).is_image(name) {
            format!("an image cannot be sent as \"{shown}\" here; {}", self.other_name(place))
        } else if parameters.names().is_empty() {
            let image = self.own_name(place);
            format!("there is no parameter \"{shown}\" here; {image}, and nothing else")
        } else if let Some(similar) = parameters.similar(name) {
            format!("there is no parameter \"{shown}\"; write it {similar}")
        } else {
            let (image, names) = (self.own_name(place), parameters.names().join(", "));
            format!("there is no parameter \"{shown}\"; {image}, and the parameters are {names}")
        };
        Error::parameter(shown, detail)
    }

    fn own_name(self, place: Place) -> &'static str {
        match (self, place) {
            (Self::One, Place::Query) => "send the image in the body",
            (Self::Many(_), Place::Query) => "send the images in the body",
            (Self::One, Place::Body) => "send the image in the field image",
            (Self::Many(_), Place::Body) => "send the images in the field images",
        }
    }

    /// For a name that images have elsewhere.
    fn other_name(self, place: Place) -> &'static str {
        match (self, place) {
            (_, Place::Query) => self.own_name(place),
            (Self::One, Place::Body) => {
                "send one image in the field image, or several in the field images to \
                 POST /caption/batch"
            }
            (Self::Many(_), Place::Body) => {
                "send an array in the field images, or one image in the field image to \
                 POST /caption/generate"
            }
        }
    }
}

/// The name without `[]` or `[0]` at its end.
fn without_index(name: &str) -> &str {
    let start = name.strip_suffix(']').and_then(|rest| rest.rsplit_once('['));
    match start {
        Some((start, index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => start,
        _ => name,
    }
}

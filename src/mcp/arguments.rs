//! The arguments of a call. They are written by language models, which like to give every argument that a
//! schema names: null and empty texts count as not given.

use rmcp::model::JsonObject;
use serde_json::Value;

use super::definitions::{IMAGE, MAX_CHARS, PATH, Tool, URL};
use crate::captioner::{CaptionParams, ParameterFields, shortened, tag_params};
use cutline_error::{Error, ErrorKind, Result};

/// What a call asks for.
#[derive(Debug, PartialEq)]
pub(super) struct Arguments {
    pub(super) source: Source,
    /// For tools that need the model.
    pub(super) params: CaptionParams,
}

/// Where the image is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// In a file.
    Path(String),
    /// At an address.
    Url(String),
    /// In the text itself.
    Image(String),
}

impl Arguments {
    /// Reads the arguments of `tool`; `paths` says whether files are read at all.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter) or [`ImageRequired`](ErrorKind::ImageRequired).
    pub(super) fn of(tool: Tool, arguments: JsonObject, paths: bool) -> Result<Self> {
        let mut source = None;
        let mut params = ParameterFields::default();
        for (name, value) in arguments {
            let given = match (name.as_str(), tool) {
                (PATH, _) if !paths => return Err(no_paths()),
                (PATH, _) => text(PATH, value)?.map(Source::Path),
                (URL, _) => text(URL, value)?.map(Source::Url),
                (IMAGE, _) => text(IMAGE, value)?.map(image),
                (MAX_CHARS, Tool::AltText) => {
                    params.add(MAX_CHARS, value)?;
                    None
                }
                _ => return Err(unknown(tool, &name, paths)),
            };
            if source.is_some() && given.is_some() {
                let detail = format!("the image is given twice; give only one of {}", ways(paths));
                return Err(Error::parameter(name, detail));
            }
            source = source.or(given);
        }
        let source = source.ok_or_else(|| {
            let detail = format!("there is no image; give it as one of {}", ways(paths));
            Error::new(ErrorKind::ImageRequired, detail)
        })?;
        if tool == Tool::AltText {
            params.add("style", Value::from("alt_text"))?;
        }
        let params = params.finish()?;
        let params = if tool == Tool::TagImage { tag_params(params) } else { params };
        Ok(Self { source, params })
    }
}

/// The error of a call over the network that names a file.
pub(super) fn no_paths() -> Error {
    Error::parameter(
        PATH,
        "files are not read over the network; send the image itself as image, or start cutline mcp with a \
         folder on the machine that has the file",
    )
}

/// The arguments that name an image.
fn ways(paths: bool) -> String {
    let path = if paths { "path, " } else { "" };
    format!("{path}{URL} and {IMAGE}")
}

fn unknown(tool: Tool, name: &str, paths: bool) -> Error {
    let shown = shortened(name);
    let more = if tool == Tool::AltText { ", and max_chars" } else { "" };
    let detail = format!(
        "there is no argument '{shown}'; {} takes one of {}{more}",
        tool.name(),
        ways(paths)
    );
    Error::parameter(shown, detail)
}

/// Models confuse the two, and no base64 has a colon.
fn image(text: String) -> Source {
    let is_url = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
    if is_url { Source::Url(text) } else { Source::Image(text) }
}

/// A text that is not empty.
fn text(name: &'static str, value: Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => Ok(Some(text)),
        _ => Err(Error::parameter(name, format!("{name} must be a string; give it as one"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captioner::Style;
    use serde_json::json;

    fn read(tool: Tool, arguments: Value) -> Result<Arguments> {
        let Value::Object(arguments) = arguments else { unreachable!() };
        Arguments::of(tool, arguments, true)
    }

    #[test]
    fn exactly_one_image_is_needed() {
        let tool = Tool::CaptionImage;
        let source = |arguments| read(tool, arguments).map(|arguments| arguments.source);
        assert_eq!(source(json!({"path": "a.jpg"})).unwrap(), Source::Path("a.jpg".into()));
        let padded = json!({"path": "", "url": null, "image": "aGk="});
        assert_eq!(source(padded).unwrap(), Source::Image("aGk=".into()));
        let address = "https://example.org/b.jpg";
        assert_eq!(source(json!({"image": address})).unwrap(), Source::Url(address.into()));
        for none in [json!({}), json!({"path": ""}), json!({"image": null})] {
            assert_eq!(source(none).unwrap_err().kind(), ErrorKind::ImageRequired);
        }
        let error =
            source(json!({"path": "a.jpg", "url": "https://example.org/b.jpg"})).unwrap_err();
        assert!(error.detail().contains("only one of path, url and image"), "{error}");
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (tool, arguments, field) in [
            (Tool::CaptionImage, json!({"path": 5}), "path"),
            (Tool::CaptionImage, json!({"image": [1, 2]}), "image"),
            (Tool::TagImage, json!({"url": {"x": 1}}), "url"),
            (Tool::CaptionImage, json!({"image": "aGk=", "max_chars": 80}), "max_chars"),
            (Tool::AltText, json!({"image": "aGk=", "max_chars": 5}), "max_chars"),
            (Tool::AltText, json!({"image": "aGk=", "max_chars": "many"}), "max_chars"),
            (Tool::ImageColors, json!({"image": "aGk=", "file": "b"}), "file"),
        ] {
            let error = read(tool, arguments.clone()).unwrap_err();
            assert_eq!(error.field(), Some(field), "{arguments}");
            assert_eq!(error.kind(), ErrorKind::InvalidParameter, "{arguments}");
        }
        let arguments = json!({"path": "a.jpg"}).as_object().unwrap().clone();
        let error = Arguments::of(Tool::CaptionImage, arguments, false).unwrap_err();
        assert!(error.detail().contains("not read over the network"), "{error}");
    }

    #[test]
    fn a_tool_decides_the_parameters() {
        let arguments = json!({"image": "aGk=", "max_chars": 80.0});
        let params = read(Tool::AltText, arguments).unwrap().params;
        assert_eq!((params.style, params.max_chars), (Style::AltText, Some(80)));
        let image = json!({"image": "aGk="});
        let params = read(Tool::CaptionImage, image.clone()).unwrap().params;
        assert_eq!(params, CaptionParams::default());
        assert!(read(Tool::TagImage, image).unwrap().params.num_captions > 1);
    }
}

//! The inputs of a request: JSON, and binary data after it.
//!
//! Every length in a request is a claim. It is compared with the bytes that are there before anything
//! is read, and nothing is allocated for it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::texts::texts;
use crate::captioner::{ParameterFields, given_twice, shortened, too_long};
use crate::http::contracts::images;
use crate::http::contracts::json::{List, Text};
use cutline_error::{Error, ErrorKind, Result};

/// The most inputs, and outputs, that a request may list; the model has two of each.
pub(super) const TENSORS: usize = 16;

/// The most dimensions of a tensor that are read; the model's have two.
pub(super) const DIMENSIONS: usize = 8;

/// An input as it is declared.
#[derive(Debug, Deserialize)]
pub(super) struct InputTensor<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    datatype: Text<'a>,
    shape: List<i64, DIMENSIONS>,
    parameters: Option<TensorParameters>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// The parameters of an input or output.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TensorParameters {
    /// The length of an input in the binary part.
    pub(super) binary_data_size: Option<u64>,
    /// Whether an output belongs into the binary part.
    pub(super) binary_data: Option<bool>,
    /// Triton's label lookup.
    pub(super) classification: Option<u64>,
    pub(super) shared_memory_region: Option<serde::de::IgnoredAny>,
}

impl TensorParameters {
    /// Refuses memory that the client shares with a server on its machine.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported).
    pub(super) fn check(&self) -> Result<()> {
        match self.shared_memory_region {
            None => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::Unsupported,
                "this server has no shared memory; send tensors in the body",
            )),
        }
    }
}

/// An element of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element<'a> {
    /// From the binary part.
    Bytes(&'a [u8]),
    /// From JSON.
    Text(Cow<'a, str>),
}

impl<'a> Element<'a> {
    /// The element as text, if it is one: images begin with other bytes, and text for one is ASCII.
    pub(super) fn reference(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(bytes) => {
                let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
                let text = bytes.iter().all(printable);
                text.then(|| std::str::from_utf8(bytes).ok()).flatten()
            }
        }
    }

    fn prompt(self) -> Result<Cow<'a, str>> {
        let text = match self {
            Self::Text(text) => text,
            Self::Bytes(bytes) => Cow::Borrowed(std::str::from_utf8(bytes).map_err(|error| {
                Error::parameter("prompt", "prompt is not UTF-8; encode it so").with_source(error)
            })?),
        };
        if text.len() > ParameterFields::MAX_BYTES {
            Err(too_long("prompt", ParameterFields::MAX_BYTES))
        } else {
            Ok(text)
        }
    }
}

/// The inputs of the model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inputs<'a> {
    pub(super) images: Vec<Element<'a>>,
    pub(super) prompt: Option<Cow<'a, str>>,
}

impl<'a> Inputs<'a> {
    /// One image, which is the whole body.
    pub(super) fn image(bytes: &'a [u8]) -> Self {
        Self { images: vec![Element::Bytes(bytes)], prompt: None }
    }

    /// Reads inputs with up to `most` images. `binary` is what follows the JSON.
    ///
    /// # Errors
    /// [`MalformedRequest`](ErrorKind::MalformedRequest),
    /// [`InvalidParameter`](ErrorKind::InvalidParameter), naming the input,
    /// [`ImageRequired`](ErrorKind::ImageRequired), [`BatchTooLarge`](ErrorKind::BatchTooLarge) or
    /// [`Unsupported`](ErrorKind::Unsupported).
    pub(super) fn read(inputs: &[InputTensor<'a>], binary: &'a [u8], most: usize) -> Result<Self> {
        let mut binary = Binary(binary);
        let mut collected = Collected::default();
        for input in inputs {
            collected.add(&input.name, |name| input.elements(name, &mut binary, most))?;
        }
        binary.finish()?;
        collected.finish()
    }
}

/// The inputs so far.
#[derive(Debug, Default)]
pub(super) struct Collected<'a> {
    images: Option<Vec<Element<'a>>>,
    prompt: Option<Cow<'a, str>>,
}

impl<'a> Collected<'a> {
    /// Adds the input `name`, whose elements `read` returns.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter): there is no such input, or it is given twice;
    /// and those of `read`.
    pub(super) fn add(
        &mut self,
        name: &str,
        read: impl FnOnce(&'static str) -> Result<Vec<Element<'a>>>,
    ) -> Result<()> {
        match name {
            "image" if self.images.is_some() => return Err(given_twice("image")),
            "prompt" if self.prompt.is_some() => return Err(given_twice("prompt")),
            "image" => self.images = Some(read("image")?),
            "prompt" => self.prompt = Some(same(read("prompt")?)?),
            other => {
                let other = shortened(other);
                let detail =
                    format!("the model has no input '{other}'; send image, and prompt if you like");
                return Err(Error::parameter(other, detail));
            }
        }
        Ok(())
    }

    /// All inputs.
    ///
    /// # Errors
    /// [`ImageRequired`](ErrorKind::ImageRequired).
    pub(super) fn finish(self) -> Result<Inputs<'a>> {
        let images = self.images.filter(|images| !images.is_empty());
        Ok(Inputs { images: images.ok_or_else(images::required)?, prompt: self.prompt })
    }
}

/// The prompt of all images. Clients that send batches repeat it for each.
fn same(elements: Vec<Element<'_>>) -> Result<Cow<'_, str>> {
    let mut elements = elements.into_iter();
    let first = elements.next().ok_or_else(|| {
        Error::parameter("prompt", "prompt is empty; give it one element, or leave it out")
    })?;
    if elements.any(|other| other != first) {
        return Err(Error::parameter(
            "prompt",
            "the prompts of a request must be equal; send a request for each prompt",
        ));
    }
    first.prompt()
}

impl<'a> InputTensor<'a> {
    /// The elements of the input `name`, at most `most`.
    fn elements(
        &self,
        name: &'static str,
        binary: &mut Binary<'a>,
        most: usize,
    ) -> Result<Vec<Element<'a>>> {
        let wrong = |detail: String| Error::parameter(name, detail);
        let count = count(name, &self.datatype, &self.shape, most)?;
        let parameters = self.parameters.as_ref();
        parameters.map_or(Ok(()), TensorParameters::check)?;
        match (parameters.and_then(|p| p.binary_data_size), self.data) {
            (Some(_), Some(_)) => {
                Err(wrong(format!("{name} has data and binary_data_size; send one of them")))
            }
            (Some(size), None) => split(binary.take(name, size)?, name, count),
            (None, Some(data)) => texts(data, name, count),
            (None, None) => Err(wrong(format!(
                "{name} has no data; send it as data, or after the JSON with binary_data_size"
            ))),
        }
    }
}

/// The number of elements of the input `name`, at most `most`.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter) or [`BatchTooLarge`](ErrorKind::BatchTooLarge).
pub(super) fn count(
    name: &'static str,
    datatype: &str,
    shape: &[i64],
    most: usize,
) -> Result<usize> {
    if datatype != "BYTES" {
        let datatype = shortened(datatype);
        let detail =
            format!("{name} has the datatype {datatype}; send BYTES: files of images, not pixels");
        return Err(Error::parameter(name, detail));
    }
    let count = match *shape {
        [count] | [count, 1] => usize::try_from(count).ok(),
        _ => None,
    };
    let wrong = || Error::parameter(name, format!("{name} must have the shape [N, 1] or [N]"));
    let count = count.ok_or_else(wrong)?;
    // Without elements there is nothing to read, whatever is missing.
    images::check_count(count.max(1), most)?;
    Ok(count)
}

/// What is left of the binary part.
struct Binary<'a>(&'a [u8]);

impl<'a> Binary<'a> {
    fn take(&mut self, name: &str, size: u64) -> Result<&'a [u8]> {
        let parts = usize::try_from(size).ok().and_then(|size| self.0.split_at_checked(size));
        let (taken, rest) = parts.ok_or_else(|| {
            let left = self.0.len();
            malformed(format!(
                "{name} has a binary_data_size of {size}, but only {left} bytes are left after the \
                 JSON; send all of it, with its JSON's length in Inference-Header-Content-Length"
            ))
        })?;
        self.0 = rest;
        Ok(taken)
    }

    fn finish(&self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(malformed(format!(
                "{left} bytes follow the last input; binary_data_size must count all of them"
            ))),
        }
    }
}

/// Splits a binary tensor into its `count` elements, each after its length.
///
/// # Errors
/// [`MalformedRequest`](ErrorKind::MalformedRequest): they are not as many.
pub(super) fn split<'a>(mut bytes: &'a [u8], name: &str, count: usize) -> Result<Vec<Element<'a>>> {
    let mut elements = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        let parts = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
        let Some((element, rest)) = parts.filter(|_| elements.len() < count) else { break };
        elements.push(Element::Bytes(element));
        bytes = rest;
    }
    if elements.len() == count && bytes.is_empty() {
        return Ok(elements);
    }
    Err(malformed(format!(
        "the binary data of {name} is not {count} elements, as its shape says; send each one after \
         its length as four bytes, the lowest first"
    )))
}

pub(super) fn malformed(detail: String) -> Error {
    Error::new(ErrorKind::MalformedRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Reads `inputs` with up to four images, and shows images as text.
    fn read(inputs: &Value, binary: &[u8]) -> Result<(Vec<String>, Option<String>)> {
        let text = inputs.to_string();
        let list: List<InputTensor<'_>, TENSORS> = serde_json::from_str(&text).unwrap();
        let Inputs { images, prompt } = Inputs::read(&list, binary, 4)?;
        let shown = |element: &Element<'_>| match element {
            Element::Bytes(bytes) => format!("{bytes:?}"),
            Element::Text(text) => text.to_string(),
        };
        Ok((images.iter().map(shown).collect(), prompt.map(Cow::into_owned)))
    }

    fn tensor(name: &str, shape: Value, data: Value) -> Value {
        json!({"name": name, "datatype": "BYTES", "shape": shape, "data": data})
    }

    fn binary(name: &str, shape: Value, size: u64) -> Value {
        let parameters = json!({"binary_data_size": size});
        json!({"name": name, "datatype": "BYTES", "shape": shape, "parameters": parameters})
    }

    #[track_caller]
    fn refused(inputs: &Value, bytes: &[u8], kind: ErrorKind) {
        let error = read(inputs, bytes).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }

    #[test]
    fn tensors_in_json_are_flat_or_nested() {
        for (shape, data) in [
            (json!([2]), json!(["a", "b"])),
            (json!([2, 1]), json!(["a", "b"])),
            (json!([2, 1]), json!([["a"], ["b"]])),
        ] {
            let images = read(&json!([tensor("image", shape, data)]), &[]).unwrap().0;
            assert_eq!(images, ["a", "b"]);
        }
        let prompt = tensor("prompt", json!([1]), json!(["x"]));
        let image = tensor("image", json!([1]), json!(["a\n"]));
        let (images, prompt) = read(&json!([prompt, image]), &[]).unwrap();
        assert_eq!((images, prompt), (vec!["a\n".to_owned()], Some("x".to_owned())));
    }

    #[test]
    fn binary_tensors_follow_in_the_order_of_the_inputs() {
        let bytes = b"\x02\0\0\0\xFF\x01\0\0\0\0\x03\0\0\0cat";
        let inputs = json!([binary("image", json!([2, 1]), 10), binary("prompt", json!([1]), 7)]);
        let (images, prompt) = read(&inputs, bytes).unwrap();
        assert_eq!((images, prompt), (vec!["[255, 1]".into(), "[]".into()], Some("cat".into())));
    }

    #[test]
    fn binary_and_json_are_mixed() {
        let inputs =
            json!([tensor("prompt", json!([1]), json!(["x"])), binary("image", json!([1]), 5)]);
        let (images, prompt) = read(&inputs, b"\x01\0\0\0\x07").unwrap();
        assert_eq!((images, prompt), (vec!["[7]".to_owned()], Some("x".to_owned())));
    }

    #[test]
    fn claims_are_compared_with_what_is_there() {
        let one = json!([binary("image", json!([1]), 5)]);
        let two = json!([binary("image", json!([2]), 5)]);
        for bytes in [
            &b"\x01\0\0\0"[..],
            b"\x02\0\0\0\x07",
            b"\0\0\0\0\x07",
            b"\xFF\xFF\xFF\xFF\x07",
            b"\x01\0\0\0\x07\x08",
            b"",
        ] {
            refused(&one, bytes, ErrorKind::MalformedRequest);
        }
        refused(&two, b"\x01\0\0\0\x07", ErrorKind::MalformedRequest);
        for size in [0, 4, 6, u64::MAX] {
            let inputs = json!([binary("image", json!([1]), size)]);
            refused(&inputs, b"\x01\0\0\0\x07", ErrorKind::MalformedRequest);
        }
        // Eight elements without a byte, where the shape says one.
        refused(&json!([binary("image", json!([1]), 32)]), &[0; 32], ErrorKind::MalformedRequest);
    }

    #[test]
    fn shapes_are_checked_before_anything_is_read() {
        for shape in [json!([]), json!([1, 2]), json!([1, 1, 1]), json!([-1]), json!([2, -1])] {
            let inputs = json!([tensor("image", shape, json!(["a"]))]);
            refused(&inputs, &[], ErrorKind::InvalidParameter);
        }
        for shape in [json!([5]), json!([i64::MAX]), json!([i64::MAX, 1])] {
            let inputs = json!([binary("image", shape.clone(), u64::MAX)]);
            refused(&inputs, &[], ErrorKind::BatchTooLarge);
            refused(&json!([tensor("image", shape, json!(["a"]))]), &[], ErrorKind::BatchTooLarge);
        }
        refused(&json!([tensor("image", json!([0]), json!([]))]), &[], ErrorKind::ImageRequired);
    }

    #[test]
    fn data_must_be_as_many_strings_as_the_shape_says() {
        let deep = Value::Array(vec![json!([["a"]])]);
        for data in [
            json!([]),
            json!(["a", "b"]),
            json!([["a", "b"]]),
            json!([1]),
            json!([null]),
            json!([true]),
            json!({"b64": "a"}),
            json!(vec!["a"; 10_000]),
            deep,
        ] {
            let inputs = json!([tensor("image", json!([1]), data)]);
            refused(&inputs, &[], ErrorKind::MalformedRequest);
        }
    }

    #[test]
    fn wrong_inputs_are_named() {
        let image = tensor("image", json!([1]), json!(["a"]));
        let field = |inputs: &Value| {
            let error = read(inputs, &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidParameter, "{error}");
            error.field().unwrap().to_owned()
        };
        assert_eq!(field(&json!([image, image])), "image");
        assert_eq!(field(&json!([tensor("pixels", json!([1]), json!(["a"]))])), "pixels");
        let mut pixels = image.clone();
        pixels["datatype"] = json!("UINT8");
        assert_eq!(field(&json!([pixels])), "image");
        let mut both = image.clone();
        both["parameters"] = json!({"binary_data_size": 0});
        assert_eq!(field(&json!([both])), "image");
        let none = json!({"name": "image", "datatype": "BYTES", "shape": [1]});
        assert_eq!(field(&json!([none])), "image");
        let prompts = tensor("prompt", json!([2]), json!(["a", "b"]));
        assert_eq!(field(&json!([image, prompts])), "prompt");
        let long = tensor("prompt", json!([1]), json!(["a".repeat(1 << 20)]));
        assert_eq!(field(&json!([image, long])), "prompt");
        let empty = tensor("prompt", json!([0]), json!([]));
        assert_eq!(field(&json!([image, empty])), "prompt");
        refused(&json!([]), &[], ErrorKind::ImageRequired);
        let mut shared = none;
        shared["parameters"] = json!({"shared_memory_region": "r", "shared_memory_byte_size": 9});
        refused(&json!([shared]), &[], ErrorKind::Unsupported);
    }

    #[test]
    fn a_prompt_may_be_repeated_for_each_image() {
        let image = tensor("image", json!([2]), json!(["a", "b"]));
        let prompt = tensor("prompt", json!([2, 1]), json!([["x"], ["x"]]));
        assert_eq!(read(&json!([image, prompt]), &[]).unwrap().1.as_deref(), Some("x"));
        let inputs = json!([binary("prompt", json!([1]), 5), image]);
        let error = read(&inputs, b"\x01\0\0\0\xFF").unwrap_err();
        assert_eq!(error.field(), Some("prompt"), "{error}");
    }

    #[test]
    fn text_for_an_image_is_told_from_its_bytes() {
        for (bytes, is_text) in [
            (&b"data:image/png;base64,AAAA"[..], true),
            (b"/9j/4AAQSkZJRg==\n", true),
            (b"\x89PNG\r\n\x1a\n", false),
            (b"\xFF\xD8\xFF", false),
            (b"GIF89a\x01\0", false),
            (b"BM\x36\0\0\0", false),
        ] {
            assert_eq!(Element::Bytes(bytes).reference().is_some(), is_text, "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_split_tensor_is_all_of_its_bytes(
            bytes in proptest::collection::vec(proptest::sample::select(vec![0, 0, 0, 0, 0, 1, 2]), 0..24),
            count in 0_usize..4,
        ) {
            let total = |elements: Vec<Element<'_>>| {
                let length = |element: &Element<'_>| match element {
                    Element::Bytes(bytes) => 4 + bytes.len(),
                    Element::Text(_) => 0,
                };
                elements.iter().map(length).sum::<usize>()
            };
            if let Ok(elements) = split(&bytes, "image", count) {
                proptest::prop_assert_eq!(elements.len(), count);
                proptest::prop_assert_eq!(total(elements), bytes.len());
            }
        }
    }
}

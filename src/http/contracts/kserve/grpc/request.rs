//! The messages of requests, as far as the model looks at them.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::super::infer::check_id;
use super::super::outputs::OutputTensor;
use super::super::tensors::{
    Collected, DIMENSIONS, Element, Inputs, TENSORS, TensorParameters, count, split,
};
use super::wire::{Field, Fields, broken, too_many};
use crate::captioner::ParameterFields;
use crate::http::contracts::json::Text;
use cutline_error::{Error, Result};

/// The most parameters of a request or a tensor.
const PARAMETERS: usize = 64;

/// `ModelReadyRequest`, `ModelMetadataRequest` and `ModelConfigRequest`.
#[derive(Debug, Default)]
pub(super) struct ModelMessage<'a> {
    pub(super) name: &'a str,
    pub(super) version: &'a str,
}

impl<'a> ModelMessage<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self> {
        let mut read = Self::default();
        for field in Fields(message) {
            match field? {
                (1, name) => read.name = name.text()?,
                (2, version) => read.version = version.text()?,
                _ => {}
            }
        }
        Ok(read)
    }
}

/// `ModelInferRequest`
#[derive(Debug, Default)]
pub(super) struct InferMessage<'a> {
    pub(super) model: &'a str,
    pub(super) version: &'a str,
    id: &'a str,
    pub(super) parameters: Map<String, Value>,
    inputs: Vec<InputMessage<'a>>,
    pub(super) outputs: Vec<OutputTensor<'a>>,
    /// The binary contents of the inputs.
    raw: Vec<&'a [u8]>,
}

impl<'a> InferMessage<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self> {
        let mut read = Self::default();
        for field in Fields(message) {
            match field? {
                (1, model) => read.model = model.text()?,
                (2, version) => read.version = version.text()?,
                (3, id) => read.id = id.text()?,
                (4, parameter) => add_parameter(parameter, &mut read.parameters)?,
                (5, input) => add(&mut read.inputs, InputMessage::read(input.bytes()?)?)?,
                (6, output) => add(&mut read.outputs, read_output(output.bytes()?)?)?,
                (7, raw) => add(&mut read.raw, raw.bytes()?)?,
                _ => {}
            }
        }
        Ok(read)
    }

    /// The id, which the answer repeats.
    pub(super) fn id(&self) -> Result<&'a str> {
        check_id(self.id)?;
        Ok(self.id)
    }

    /// The inputs with up to `most` images. Their contents are either all apart or all in themselves.
    pub(super) fn inputs(&self, most: usize) -> Result<Inputs<'a>> {
        if !self.raw.is_empty() && self.raw.len() != self.inputs.len() {
            return Err(Error::parameter(
                "raw_input_contents",
                "raw_input_contents must have one element for each input, or none",
            ));
        }
        let mut raw = self.raw.iter();
        let mut collected = Collected::default();
        for input in &self.inputs {
            let raw = raw.next();
            collected.add(input.name, |name| input.elements(name, raw.copied(), most))?;
        }
        collected.finish()
    }
}

/// Stores a tensor, unless there are too many.
fn add<T>(all: &mut Vec<T>, one: T) -> Result<()> {
    if all.len() == TENSORS {
        return Err(too_many());
    }
    all.push(one);
    Ok(())
}

/// `InferInputTensor`
#[derive(Debug, Default)]
struct InputMessage<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: Vec<i64>,
    parameters: Map<String, Value>,
    contents: Option<&'a [u8]>,
}

impl<'a> InputMessage<'a> {
    fn read(message: &'a [u8]) -> Result<Self> {
        let mut read = Self::default();
        for field in Fields(message) {
            match field? {
                (1, name) => read.name = name.text()?,
                (2, datatype) => read.datatype = datatype.text()?,
                (3, Field::Varint(dimension)) => {
                    if read.shape.len() == DIMENSIONS {
                        return Err(too_many());
                    }
                    read.shape.push(dimension.cast_signed());
                }
                (3, packed) => read.shape = Fields::packed(packed.bytes()?, DIMENSIONS)?,
                (4, parameter) => add_parameter(parameter, &mut read.parameters)?,
                (5, contents) => read.contents = Some(contents.bytes()?),
                _ => {}
            }
        }
        Ok(read)
    }

    fn elements(
        &self,
        name: &'static str,
        raw: Option<&'a [u8]>,
        most: usize,
    ) -> Result<Vec<Element<'a>>> {
        let count = count(name, self.datatype, &self.shape, most)?;
        tensor_parameters(&self.parameters).check()?;
        if let Some(raw) = raw {
            return split(raw, name, count);
        }
        let wrong = || {
            let detail = format!(
                "{name} must have {count} elements, as its shape says; send them in \
                 raw_input_contents or in bytes_contents"
            );
            Error::parameter(name, detail)
        };
        let mut elements = Vec::new();
        for field in Fields(self.contents.unwrap_or_default()) {
            if let (8, element) = field? {
                if elements.len() == count {
                    return Err(wrong());
                }
                elements.push(Element::Bytes(element.bytes()?));
            }
        }
        if elements.len() == count { Ok(elements) } else { Err(wrong()) }
    }
}

/// `InferRequestedOutputTensor`
fn read_output(message: &[u8]) -> Result<OutputTensor<'_>> {
    let (mut name, mut parameters) = ("", Map::new());
    for field in Fields(message) {
        match field? {
            (1, text) => name = text.text()?,
            (2, parameter) => add_parameter(parameter, &mut parameters)?,
            _ => {}
        }
    }
    let parameters = Some(tensor_parameters(&parameters));
    Ok(OutputTensor { name: Text(Cow::Borrowed(name)), parameters })
}

/// The parameters of a tensor that are looked at.
fn tensor_parameters(parameters: &Map<String, Value>) -> TensorParameters {
    let shared = parameters.contains_key("shared_memory_region");
    TensorParameters {
        binary_data_size: None,
        binary_data: None,
        classification: parameters.get("classification").and_then(Value::as_u64),
        shared_memory_region: shared.then_some(serde::de::IgnoredAny),
    }
}

/// Adds an entry of `map<string, InferParameter>`.
fn add_parameter(entry: Field<'_>, parameters: &mut Map<String, Value>) -> Result<()> {
    let (mut name, mut value) = ("", Value::Null);
    for field in Fields(entry.bytes()?) {
        match field? {
            (1, text) => name = text.text()?,
            (2, parameter) => value = parameter_value(parameter.bytes()?)?,
            _ => {}
        }
    }
    if parameters.len() == PARAMETERS || name.len() > ParameterFields::MAX_BYTES {
        return Err(too_many());
    }
    parameters.insert(name.to_owned(), value);
    Ok(())
}

/// `InferParameter`
fn parameter_value(message: &[u8]) -> Result<Value> {
    let mut value = Value::Null;
    for field in Fields(message) {
        value = match field? {
            (1, flag) => Value::from(flag.varint()? != 0),
            (2, number) => Value::from(number.varint()?.cast_signed()),
            (3, text) => {
                let text = text.text()?;
                if text.len() > ParameterFields::MAX_BYTES {
                    return Err(too_many());
                }
                Value::from(text)
            }
            // Null for what is no number.
            (4, Field::Fixed(bits)) => Value::from(f64::from_bits(bits)),
            (5, number) => Value::from(number.varint()?),
            (4, _) => return Err(broken()),
            _ => continue,
        };
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fields that the messages have, in any order and number, with any contents.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let field = (1_u8..9, 0_u8..6, proptest::collection::vec(any::<u8>(), 0..12));
        let encoded = |(number, kind, contents): (u8, u8, Vec<u8>)| {
            let length = u8::try_from(contents.len()).unwrap_or_default();
            [&[number << 3 | kind, length], &contents[..]].concat()
        };
        proptest::collection::vec(field.prop_map(encoded), 0..40).prop_map(|all| all.concat())
    }

    proptest! {
        #[test]
        fn any_message_is_read_within_its_limits_or_refused(bytes in message()) {
            if let Ok(read) = InferMessage::read(&bytes) {
                prop_assert!(read.inputs.len() <= TENSORS && read.raw.len() <= TENSORS);
                prop_assert!(read.outputs.len() <= TENSORS && read.parameters.len() <= PARAMETERS);
                prop_assert!(read.inputs.iter().all(|input| input.shape.len() <= DIMENSIONS));
                if let Ok(inputs) = read.inputs(4) {
                    prop_assert!((1..=4).contains(&inputs.images.len()));
                }
            }
        }
    }
}

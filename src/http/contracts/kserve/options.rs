//! The parameters of a request: the native ones, and those that Triton keeps for itself.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::tensors::Inputs;
use crate::captioner::{CaptionParams, ParameterFields, Priority};
use crate::http::contracts::ask::Urgency;
use crate::http::contracts::json;
use cutline_error::{Error, Result};

/// Parameters that mean something to Triton and nothing here.
const IGNORED: [&str; 4] = ["sequence_id", "sequence_start", "sequence_end", "headers"];

/// The beginning of other names that Triton keeps for itself.
const RESERVED: &str = "triton_";

/// What the parameters of a request say.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) params: CaptionParams,
    /// Whether outputs are binary unless they say otherwise.
    pub(super) binary: bool,
    /// 0 for the usual one; then the higher the number, the lower the priority.
    priority: u64,
    /// 0 for the usual one.
    timeout: Duration,
}

impl Options {
    /// Reads the parameters of a request in JSON, and the prompt among its inputs.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter).
    pub(super) fn of(parameters: Option<&RawValue>, inputs: &Inputs<'_>) -> Result<Self> {
        let parameters = match parameters {
            Some(parameters) => json::parameters(parameters, "parameters")?,
            None => Map::new(),
        };
        Self::read(parameters, inputs.prompt.as_deref())
    }

    /// Reads the parameters of a request, and its prompt.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter).
    pub(super) fn read(parameters: Map<String, Value>, prompt: Option<&str>) -> Result<Self> {
        let mut fields = ParameterFields::default();
        let (mut binary, mut priority, mut microseconds) = (false, 0, 0);
        for (name, value) in parameters {
            match name.as_str() {
                "binary_data_output" => binary = flag(&name, &value)?,
                "priority" => priority = whole(&name, &value)?,
                "timeout" => microseconds = whole(&name, &value)?,
                reserved if IGNORED.contains(&reserved) || reserved.starts_with(RESERVED) => {}
                // Some clients can only send text.
                _ => match value {
                    Value::String(text) => fields.add_text(&name, &text)?,
                    value => fields.add(&name, value)?,
                },
            }
        }
        if let Some(prompt) = prompt {
            fields.add("prompt", Value::from(prompt))?;
        }
        let mut params = fields.finish()?;
        if params.num_captions > 1 {
            return Err(Error::parameter(
                "num_captions",
                "an output has one caption for each image; leave num_captions out here, or use \
                 /caption/generate",
            ));
        }
        params.stream = false;
        Ok(Self { params, binary, priority, timeout: Duration::from_micros(microseconds) })
    }

    /// How urgent the request is. A client can take a lower priority and less time than usual, never
    /// more.
    pub(super) fn urgency(&self, usual: Urgency) -> Urgency {
        let priority = if self.priority > 1 { Priority::Bulk } else { usual.priority };
        let limit =
            if self.timeout.is_zero() { usual.limit } else { usual.limit.min(self.timeout) };
        Urgency { priority, limit }
    }
}

fn flag(name: &str, value: &Value) -> Result<bool> {
    let wrong = || Error::parameter(name.to_owned(), format!("{name} must be true or false"));
    value.as_bool().ok_or_else(wrong)
}

fn whole(name: &str, value: &Value) -> Result<u64> {
    let wrong = || Error::parameter(name.to_owned(), format!("{name} must be a number from 0"));
    value.as_u64().ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(parameters: &Value, prompt: Option<&str>) -> Result<Options> {
        Options::read(parameters.as_object().unwrap().clone(), prompt)
    }

    #[test]
    fn native_parameters_come_with_tritons() {
        let options = read(
            &json!({
                "num_beams": 3, "max_new_tokens": "7", "style": "alt_text", "binary_data_output": true,
                "sequence_id": 0, "sequence_start": false, "sequence_end": false, "headers": {},
                "triton_enable_empty_final_response": true, "stream": true,
            }),
            Some("a photo of"),
        )
        .unwrap();
        assert!(options.binary && !options.params.stream);
        let params = options.params;
        assert_eq!((params.num_beams, params.max_new_tokens), (3, 7));
        assert_eq!(params.prompt.as_deref(), Some("a photo of"));
    }

    #[test]
    fn wrong_parameters_are_named() {
        let field = |parameters, prompt| {
            let error = read(&parameters, prompt).unwrap_err();
            error.field().unwrap_or_default().to_owned()
        };
        assert_eq!(field(json!({"beams": 3}), None), "beams");
        assert_eq!(field(json!({"num_beams": "many"}), None), "num_beams");
        assert_eq!(field(json!({"timeout": -1}), None), "timeout");
        assert_eq!(field(json!({"priority": "high"}), None), "priority");
        assert_eq!(field(json!({"binary_data_output": 1}), None), "binary_data_output");
        assert_eq!(field(json!({"prompt": "a"}), Some("b")), "prompt");
        let long = "a".repeat(1 << 20);
        assert_eq!(field(json!({}), Some(&long)), "prompt");
        assert_eq!(field(json!({"num_beams": 2, "num_captions": 2}), None), "num_captions");
    }

    #[test]
    fn a_client_can_only_lower_its_priority_and_its_time() {
        let usual = Urgency { priority: Priority::Interactive, limit: Duration::from_secs(30) };
        let urgency = |parameters| read(&parameters, None).unwrap().urgency(usual);
        assert_eq!(urgency(json!({})), usual);
        assert_eq!(urgency(json!({"priority": 1, "timeout": 0})), usual);
        assert_eq!(urgency(json!({"timeout": u64::MAX})), usual);
        let low = urgency(json!({"priority": 2, "timeout": 500_000}));
        assert_eq!(low.priority, Priority::Bulk);
        assert_eq!(low.limit, Duration::from_millis(500));
        let bulk = Urgency { priority: Priority::Bulk, ..usual };
        assert_eq!(read(&json!({"priority": 1}), None).unwrap().urgency(bulk), bulk);
    }
}

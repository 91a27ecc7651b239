//! What the schema of [`CaptionParams`] declares about each parameter: it checks values, parses text,
//! and writes the line for `--help`.

use std::fmt;
use std::sync::LazyLock;

use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema, SchemaType, Type};
use utoipa::{Number, PartialSchema};

use super::params::{CaptionParams, shortened};
use cutline_error::{Error, Result};

/// One parameter, as the schema of [`CaptionParams`] declares it.
pub struct Parameter {
    name: String,
    schema: Object,
}

impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.expected())
    }
}

static PARAMETERS: LazyLock<Vec<Parameter>> = LazyLock::new(|| {
    let defaults = serde_json::to_value(CaptionParams::default()).unwrap_or_default();
    let Some(object) = plain(CaptionParams::schema()) else { return Vec::new() };
    let properties = object.properties.into_iter().filter_map(|(name, schema)| {
        let mut schema = plain(schema)?;
        schema.default = defaults.get(&name).cloned();
        Some(Parameter { name, schema })
    });
    properties.collect()
});

/// The schema as one object. utoipa wraps the schema of an enum to add a default to it.
fn plain(schema: RefOr<Schema>) -> Option<Object> {
    match schema {
        RefOr::T(Schema::Object(object)) => Some(object),
        RefOr::T(Schema::AllOf(all)) => all.items.into_iter().find_map(plain),
        RefOr::T(Schema::OneOf(one)) => one.items.into_iter().find_map(plain),
        _ => None,
    }
}

impl Parameter {
    /// All parameters, in the order of their declaration.
    #[must_use]
    pub fn all() -> &'static [Self] {
        &PARAMETERS
    }

    pub(super) fn named(name: &str) -> Result<&'static Self> {
        Self::all().iter().find(|parameter| parameter.name == name).ok_or_else(|| {
            let shown = shortened(name);
            let names: Vec<&str> = Self::all().iter().map(Self::name).collect();
            let list = names.join(", ");
            let detail = format!("there is no parameter \"{shown}\"; the parameters are {list}");
            Error::parameter(shown, detail)
        })
    }

    /// The parameter that `name` was probably meant to be: it differs only in case, hyphens and
    /// underscores.
    #[must_use]
    pub fn similar(name: &str) -> Option<&'static Self> {
        let letters = |name: &str| -> String {
            name.chars().filter(|c| !"-_ ".contains(*c)).map(|c| c.to_ascii_lowercase()).collect()
        };
        let wanted = letters(name);
        Self::all().iter().find(|parameter| letters(&parameter.name) == wanted)
    }

    /// Its name in JSON, forms and query strings.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its JSON schema: type, range, default and description.
    #[must_use]
    pub fn schema(&self) -> &Object {
        &self.schema
    }

    /// Whether it is a boolean.
    #[must_use]
    pub fn is_flag(&self) -> bool {
        self.is(&Type::Boolean)
    }

    pub(super) fn is(&self, kind: &Type) -> bool {
        matches!(&self.schema.schema_type, SchemaType::Type(own) if own == kind)
    }

    /// One line for `--help`: the first sentence of the description, the range and the default.
    #[must_use]
    pub fn help(&self) -> String {
        let description = self.schema.description.as_deref().unwrap_or("").replace('\n', " ");
        let first = description.split(". ").next().unwrap_or("").trim_end_matches('.');
        let mut help = first.replace('`', "");
        if let (Some(least), Some(most)) = (self.least(), self.most()) {
            // Larger bounds only reject nonsense and would not help a reader.
            if most <= 1000.0 && least > 0.0 {
                help += &format!(" [{least} to {most}]");
            }
        }
        match &self.schema.default {
            Some(Value::String(default)) => help += &format!(" [default: {default}]"),
            Some(default) if !self.is_flag() => help += &format!(" [default: {default}]"),
            _ => {}
        }
        help
    }

    /// Parses `text` as a value. Text that cannot be parsed becomes a string, which `check`
    /// refuses.
    pub(super) fn parse(&self, text: &str) -> Value {
        if self.is(&Type::String) {
            // A prompt is free text; no name and no choice is "null".
            let is_null = self.name != "prompt" && text == "null";
            return if is_null { Value::Null } else { Value::from(text) };
        }
        match text.trim() {
            // The spellings that HTML forms and shells produce.
            "on" | "yes" | "True" | "TRUE" | "1" if self.is_flag() => Value::Bool(true),
            "off" | "no" | "False" | "FALSE" | "0" if self.is_flag() => Value::Bool(false),
            trimmed => serde_json::from_str(trimmed).unwrap_or_else(|_| Value::from(trimmed)),
        }
    }

    /// The value as an integer if the parameter is one and the value is written as `3.0`.
    pub(super) fn normalized(&self, value: Value) -> Value {
        /// Up to here every whole number has its own floating-point number.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match value.as_f64() {
            Some(number)
                if self.is(&Type::Integer)
                    && value.is_f64()
                    && number.fract() == 0.0
                    && (0.0..=EXACT).contains(&number) =>
            {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked above.
                Value::from(number as u64)
            }
            _ => value,
        }
    }

    pub(super) fn check(&self, value: &Value) -> Result<()> {
        let accepted = if self.is(&Type::String) {
            value.is_string() && self.choices().is_none_or(|choices| choices.contains(value))
        } else if self.is_flag() {
            value.is_boolean()
        } else if self.is(&Type::Integer) {
            // Numbers that lose precision are beyond every bound.
            #[allow(clippy::cast_precision_loss)]
            value.as_u64().is_some_and(|number| self.in_range(number as f64))
        } else {
            #[allow(clippy::cast_possible_truncation)] // Parameters are f32 in the arithmetic.
            let narrow = value.as_f64().map(|number| number as f32);
            narrow.is_some_and(|number| number.is_finite() && self.in_range(f64::from(number)))
        };
        if accepted {
            return Ok(());
        }
        let Self { name, .. } = self;
        Err(Error::parameter(name.clone(), format!("{name} must be {}", self.expected())))
    }

    fn in_range(&self, number: f64) -> bool {
        let above = self.schema.exclusive_minimum.as_ref().map(number_of);
        self.least().is_none_or(|least| number >= least)
            && self.most().is_none_or(|most| number <= most)
            && above.is_none_or(|bound| number > bound)
    }

    fn least(&self) -> Option<f64> {
        self.schema.minimum.as_ref().map(number_of)
    }

    fn most(&self) -> Option<f64> {
        self.schema.maximum.as_ref().map(number_of)
    }

    fn choices(&self) -> Option<&[Value]> {
        self.schema.enum_values.as_deref()
    }

    /// Describes the accepted values in words.
    fn expected(&self) -> String {
        if let Some(choices) = self.choices() {
            let choices: Vec<&str> = choices.iter().filter_map(Value::as_str).collect();
            return choices.join(" or ");
        }
        if self.is(&Type::String) {
            return "a string".to_owned();
        }
        if self.is_flag() {
            return "true or false".to_owned();
        }
        let kind = if self.is(&Type::Integer) { "a whole number" } else { "a number" };
        let above = self.schema.exclusive_minimum.as_ref().map(number_of);
        match (self.least(), above, self.most()) {
            (Some(least), _, Some(most)) => format!("{kind} between {least} and {most}"),
            (Some(least), _, None) => format!("{kind} of at least {least}"),
            (None, Some(bound), Some(most)) => {
                format!("{kind} greater than {bound} and at most {most}")
            }
            (None, Some(bound), None) => format!("{kind} greater than {bound}"),
            (None, None, Some(most)) => format!("{kind} of at most {most}"),
            (None, None, None) => kind.to_owned(),
        }
    }
}

fn number_of(bound: &Number) -> f64 {
    #[allow(clippy::cast_precision_loss)] // Bounds are small.
    match *bound {
        Number::Int(number) => number as f64,
        Number::UInt(number) => number as f64,
        Number::Float(number) => number,
    }
}

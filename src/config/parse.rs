//! From the text of a setting to its value.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::table::{self, Setting};
use super::values::{Value, Values};
use cutline_error::{Error, ErrorKind, Result};

/// The longest time that can be set: a day.
const MAX_SECONDS: f64 = 86_400.0;

/// Reads settings by the names in the table; a name without a default is `None` when unset.
pub(super) struct Reader<'v> {
    values: &'v Values,
}

impl<'v> Reader<'v> {
    pub(super) fn new(values: &'v Values) -> Self {
        Self { values }
    }

    /// The text, or the default's.
    fn find(&self, name: &str) -> Result<Option<Value<'v>>> {
        let default = table::find(name).and_then(|setting| setting.default);
        Ok(self.values.get(name)?.or(default.map(Value::default_of)))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        Ok(self.find(name)?.map(|value| value.text.to_owned()))
    }

    /// The text of a setting that has a default.
    pub(super) fn required(&self, name: &str) -> Result<String> {
        self.text(name)?.ok_or_else(|| Error::internal(format!("{name} has no default")))
    }

    pub(super) fn number<N>(&self, name: &str, least: N, most: N) -> Result<N>
    where
        N: FromStr + PartialOrd + Display + Copy,
    {
        self.optional_number(name, least, most)?
            .ok_or_else(|| Error::internal(format!("{name} has no default")))
    }

    pub(super) fn optional_number<N>(&self, name: &str, least: N, most: N) -> Result<Option<N>>
    where
        N: FromStr + PartialOrd + Display + Copy,
    {
        let Some(value) = self.find(name)? else { return Ok(None) };
        // Python's separator, which people write in long numbers.
        let number = value.text.replace('_', "").parse().ok();
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(self.unusable(name, &format!("give a whole number from {least} to {most}")))
            }
        }
    }

    /// A number, or `None` for `auto`.
    pub(super) fn number_or_auto<N>(&self, name: &str, least: N, most: N) -> Result<Option<N>>
    where
        N: FromStr + PartialOrd + Display + Copy,
    {
        if self.required(name)?.eq_ignore_ascii_case("auto") {
            return Ok(None);
        }
        // Every other text is a number or a mistake.
        match self.optional_number(name, least, most) {
            Err(_) => {
                let remedy = format!("give auto, or a whole number from {least} to {most}");
                Err(self.unusable(name, &remedy))
            }
            number => number,
        }
    }

    pub(super) fn seconds(&self, name: &str, least: f64) -> Result<Duration> {
        let text = self.required(name)?;
        match text.parse::<f64>() {
            Ok(seconds) if (least..=MAX_SECONDS).contains(&seconds) => {
                Ok(Duration::from_secs_f64(seconds))
            }
            _ => Err(self.unusable(
                name,
                &format!("give a number of seconds from {least} to {MAX_SECONDS}"),
            )),
        }
    }

    /// One of `choices`, whatever the case.
    pub(super) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T> {
        let text = self.required(name)?;
        match choices.iter().find(|(choice, _)| choice.eq_ignore_ascii_case(&text)) {
            Some((_, value)) => Ok(*value),
            None => {
                let list: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
                Err(self.unusable(name, &format!("give one of {}", list.join(", "))))
            }
        }
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool> {
        let spellings = [
            ("true", true),
            ("false", false),
            ("1", true),
            ("0", false),
            ("yes", true),
            ("no", false),
            ("on", true),
            ("off", false),
        ];
        self.choice(name, &spellings)
    }

    pub(super) fn address(&self, name: &str) -> Result<String> {
        let text = self.required(name)?;
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(text);
        }
        Err(self.unusable(name, "give an address that starts with https:// or http://"))
    }

    /// A type that parses itself. Its sentence may name the setting already.
    pub(super) fn optional<T: FromStr<Err = Error>>(&self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.find(name)? else { return Ok(None) };
        match value.text.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(error) if error.detail().contains(name) => Err(error),
            Err(error) => Err(self.unusable(name, error.detail())),
        }
    }

    /// The sentence for a value that cannot be used; `remedy` says what to give instead.
    pub(super) fn unusable(&self, name: &str, remedy: &str) -> Error {
        let secret = table::find(name).is_some_and(|setting: &Setting| setting.secret);
        let given = match self.find(name) {
            Ok(Some(value)) if !secret => {
                let shown: String = value.text.chars().take(80).collect();
                format!("{name}={shown} ({})", value.origin)
            }
            _ => name.to_owned(),
        };
        Error::new(ErrorKind::Config, format!("{given} cannot be used: {remedy}"))
    }
}

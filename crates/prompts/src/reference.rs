//! References: `name`, `name@label`, `name:3`.

use std::fmt;
use std::str::FromStr;

use cutline_error::{Error, Result};

/// The longest name of a prompt, an experiment or a label.
const MAX_NAME: usize = 64;

/// A prompt, and which of its versions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The name of the prompt.
    pub name: String,
    /// Which version.
    pub which: Which,
}

/// Which version of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Which {
    /// Not said: the variant of a running experiment, or else the one with the label `production`.
    Served,
    /// The one with this label.
    Label(String),
    /// The one with this number.
    Version(u32),
}

impl Reference {
    /// The label of versions that are served.
    pub const PRODUCTION: &'static str = "production";
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, which) = match (text.split_once('@'), text.split_once(':')) {
            (Some((name, label)), _) => {
                check_label(label)?;
                (name, Which::Label(label.to_owned()))
            }
            (None, Some((name, number))) => {
                let digits = number.bytes().all(|byte| byte.is_ascii_digit());
                let number = number.parse().ok().filter(|number| digits && *number > 0);
                (name, Which::Version(number.ok_or_else(wrong)?))
            }
            (None, None) => (text, Which::Served),
        };
        check_name(name).map_err(|_| wrong())?;
        Ok(Self { name: name.to_owned(), which })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Served => f.write_str(&self.name),
            Which::Label(label) => write!(f, "{}@{label}", self.name),
            Which::Version(number) => write!(f, "{}:{number}", self.name),
        }
    }
}

fn wrong() -> Error {
    Error::parameter(
        "template",
        "a template is named like name, name@label or name:3; letters, digits, - _ . in names",
    )
}

/// Checks the name of a prompt or an experiment.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `name`.
pub fn check_name(name: &str) -> Result<()> {
    check("name", name)
}

/// Checks a label.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `label`.
pub fn check_label(label: &str) -> Result<()> {
    check("label", label)
}

fn check(what: &'static str, name: &str) -> Result<()> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if first && name.len() <= MAX_NAME && name.chars().all(letter) {
        return Ok(());
    }
    Err(Error::parameter(
        what,
        format!(
            "a {what} has up to {MAX_NAME} letters, digits, - _ and ., and begins with a letter or digit; \
             correct it"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_versions() {
        for (text, which) in [
            ("alt", Which::Served),
            ("alt@staging", Which::Label("staging".into())),
            ("alt:3", Which::Version(3)),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.name.as_str(), &reference.which), ("alt", &which));
            assert_eq!(reference.to_string(), text);
        }
        for text in ["", "@a", "a@", "a:", "a:0", "a:+3", "a:b", "a b", "-a", "a:3@b", "ä", "a@b:3"]
        {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!(check_name(&"x".repeat(65)).is_err() && check_name(&"x".repeat(64)).is_ok());
    }
}

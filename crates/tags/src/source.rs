//! Where a vocabulary comes from: it is given, or a library has it.

use std::fmt;
use std::str::FromStr;

use cutline_error::{Error, Result};

use crate::vocabulary::{FIELD, Vocabulary};

/// Precedes the name of a vocabulary of a library.
const PREFIX: &str = "library:";
/// The longest name, in bytes.
const MAX_NAME: usize = 64;

/// A vocabulary, or where it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The vocabulary itself.
    Own(Vocabulary),
    /// In a library.
    Library(Reference),
}

/// A vocabulary of a library: `library:NAME`, or `library:NAME:VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// The number of the version; without one, the version that counts.
    pub version: Option<u32>,
}

impl Source {
    /// Reads a reference, or else a vocabulary as [`Vocabulary::parse`] does.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `vocabulary`.
    pub fn parse(text: &str) -> Result<Self> {
        match Reference::in_text(text) {
            Some(reference) => reference.map(Self::Library),
            None => Vocabulary::parse(text.as_bytes()).map(Self::Own),
        }
    }
}

impl Reference {
    /// The reference that `text` is; `None` if it is none. A line with a tag and its synonym,
    /// `library: books`, has a blank, and so is a vocabulary.
    ///
    /// # Errors
    /// As [`from_str`](Self::from_str).
    #[must_use]
    pub fn in_text(text: &str) -> Option<Result<Self>> {
        let text = text.trim();
        let is_one = text.starts_with(PREFIX) && !text.contains(char::is_whitespace);
        is_one.then(|| text.parse())
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `vocabulary`: it is none.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let detail = "a vocabulary of the library is written library:NAME or library:NAME:VERSION; \
                          correct it";
            Error::parameter(FIELD, detail)
        };
        let rest = text.strip_prefix(PREFIX).ok_or_else(wrong)?;
        let (name, version) = match rest.split_once(':') {
            None => (rest, None),
            Some((name, number)) => {
                let digits = number.bytes().all(|byte| byte.is_ascii_digit());
                let number = number.parse().ok().filter(|number| digits && *number > 0);
                (name, Some(number.ok_or_else(wrong)?))
            }
        };
        if !is_name(name) {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), version })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.name)?;
        self.version.map_or(Ok(()), |version| write!(f, ":{version}"))
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed)
}

/// Checks the name of a vocabulary of a library.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `name`.
pub fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Error::parameter(
        "name",
        format!(
            "a name has up to {MAX_NAME} letters, digits, - _ and ., and begins with a letter or digit; \
             correct it"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_told_from_a_vocabulary() {
        let named =
            |name: &str, version| Source::Library(Reference { name: name.to_owned(), version });
        assert_eq!(Source::parse("library:shop").unwrap(), named("shop", None));
        assert_eq!(Source::parse(" library:shop-2.b:12\n").unwrap(), named("shop-2.b", Some(12)));
        for own in ["library: books", "library:books\ndog", "[\"library:shop\"]", "library"] {
            assert!(matches!(Source::parse(own), Ok(Source::Own(_))), "{own}");
        }
        for wrong in [
            "library:",
            "library::1",
            "library:shop:",
            "library:shop:0",
            "library:shop:+1",
            "library:shop:x",
            "library:shop:99999999999",
            "library:shop:1:2",
            "library:-shop",
            "library:a/b",
            &format!("library:{}", "a".repeat(65)),
        ] {
            assert_eq!(Source::parse(wrong).unwrap_err().field(), Some(FIELD), "{wrong}");
        }
        for text in ["library:shop", "library:shop:3"] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
        assert!(check_name("shop").is_ok() && check_name("").is_err() && check_name("ä").is_err());
    }
}

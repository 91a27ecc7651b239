//! Where the text of a setting is found.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use super::table::SETTINGS;
use cutline_error::{Error, ErrorKind, Result};

/// Variables that other programs define, and that decide where models are kept.
const FOREIGN: [&str; 5] = ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME", "USERPROFILE"];

/// The texts that settings are read from.
#[derive(Default)]
pub struct Values {
    options: HashMap<String, String>,
    environment: HashMap<String, OsString>,
    file: HashMap<String, String>,
}

/// A text and where it comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'v> {
    pub(super) text: &'v str,
    pub(super) origin: Origin,
}

impl<'v> Value<'v> {
    pub(super) fn default_of(text: &'v str) -> Self {
        Self { text, origin: Origin::Default }
    }
}

/// Where a text comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    Option,
    Environment,
    File,
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Option => "from the command line",
            Self::Environment => "from the environment",
            Self::File => "from .env",
            Self::Default => "the default",
        })
    }
}

impl Values {
    /// The environment of this process and the file `.env` in its folder, if there is one.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): `.env` is there and cannot be read.
    pub fn of_process() -> Result<Self> {
        let names = SETTINGS.iter().map(|setting| setting.name).chain(FOREIGN);
        let environment = names
            .filter_map(|name| env::var_os(name).map(|value| (name.to_owned(), value)))
            .collect();
        Ok(Self { environment, file: read_file(Path::new(".env"))?, ..Self::default() })
    }

    /// Texts from an environment that is not the process's.
    #[must_use]
    pub fn of_environment<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), OsString::from(value));
        Self { environment: pairs.into_iter().map(own).collect(), ..Self::default() }
    }

    /// Adds the texts of a file in the format of `.env`.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): the file is there and cannot be read.
    pub fn with_file(mut self, path: &Path) -> Result<Self> {
        self.file = read_file(path)?;
        Ok(self)
    }

    /// Puts the command line's text of the setting `name` before all others.
    pub fn set_option(&mut self, name: &str, text: String) {
        self.options.insert(name.to_owned(), text);
    }

    /// Whether `name` has a text of its own, or is left to its default.
    ///
    /// # Errors
    /// As for reading it.
    pub fn is_set(&self, name: &str) -> Result<bool> {
        Ok(self.get(name)?.is_some())
    }

    /// The text of `name` with the spaces around it taken off; an empty one counts as none.
    pub(super) fn get(&self, name: &str) -> Result<Option<Value<'_>>> {
        let option = self.options.get(name).map(String::as_str);
        let environment = match self.environment.get(name) {
            Some(value) => Some(value.to_str().ok_or_else(|| {
                Error::new(ErrorKind::Config, format!("{name} is not UTF-8; set it to UTF-8 text"))
            })?),
            None => None,
        };
        let file = self.file.get(name).map(String::as_str);
        let places =
            [(option, Origin::Option), (environment, Origin::Environment), (file, Origin::File)];
        Ok(places
            .into_iter()
            .filter_map(|(text, origin)| Some(Value { text: text?.trim(), origin }))
            .find(|value| !value.text.is_empty()))
    }
}

impl fmt::Debug for Values {
    /// No texts: some are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").finish_non_exhaustive()
    }
}

fn read_file(path: &Path) -> Result<HashMap<String, String>> {
    let broken = |error: dotenvy::Error| {
        // The parser's own words quote the line, which may hold a secret.
        let why = match &error {
            dotenvy::Error::Io(io) => format!("{} cannot be read ({io})", path.display()),
            _ => format!("{} has a line that is not NAME=value", path.display()),
        };
        Error::new(ErrorKind::Config, format!("{why}; correct the file or remove it"))
    };
    match dotenvy::from_path_iter(path) {
        Ok(lines) => lines.collect::<Result<_, _>>().map_err(broken),
        Err(error) if error.not_found() => Ok(HashMap::new()),
        Err(error) => Err(broken(error)),
    }
}

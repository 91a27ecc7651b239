//! The texts of settings, and where they come from: the command line wins over the environment, which
//! wins over a file. An empty text counts as not set.

use std::collections::{HashMap, HashSet};
use std::env;
use std::error::Error as _;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::ContextKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};

use super::document::{ENV_FILE, settings, variable};
use super::env_file;
use cutline_error::{Error, ErrorKind, Result};

/// Variables of other programs that decide where models are cached.
const CACHE_VARIABLES: [&str; 5] =
    ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME", "USERPROFILE"];

/// The texts of settings by the name of their variable.
#[derive(Default)]
pub struct Values(HashMap<String, (Origin, OsString)>);

/// Where a text comes from; a later one wins.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// The line, and the file.
    File(usize, String),
    Environment,
    Option,
    /// A program that uses this crate.
    Caller,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(line, file) => write!(f, "from {file}, line {line}"),
            Self::Environment => f.write_str("from the environment"),
            Self::Option => f.write_str("from the command line"),
            Self::Caller => f.write_str("from the caller"),
        }
    }
}

impl Values {
    /// The environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let mut values = Self::default();
        for name in names() {
            if let Some(text) = env::var_os(&name) {
                values.add(&name, Origin::Environment, text);
            }
        }
        values
    }

    /// The environment, the options of a command that was made by
    /// [`with_settings`](super::with_settings), and the file that its `--env-file` names. If that is
    /// only a default, the file may be missing.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): the file cannot be read, or a line of it sets nothing.
    pub fn of_command(matches: &ArgMatches) -> Result<Self> {
        let mut values = Self::of_process();
        if let Some(path) = matches.get_one::<PathBuf>(ENV_FILE) {
            let optional = matches.value_source(ENV_FILE) == Some(ValueSource::DefaultValue);
            values.add_file(path, optional)?;
        }
        values.add_options(matches);
        Ok(values)
    }

    /// The texts of an environment other than the one of this process.
    #[must_use]
    pub fn of_environment<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut values = Self::default();
        pairs.into_iter().for_each(|(name, text)| values.add(name, Origin::Environment, text));
        values
    }

    /// Adds the texts of a file in the format of `.env`, if it exists.
    ///
    /// # Errors
    /// As for [`of_command`](Self::of_command).
    pub fn with_file(mut self, path: &Path) -> Result<Self> {
        self.add_file(path, true)?;
        Ok(self)
    }

    fn add_file(&mut self, path: &Path, optional: bool) -> Result<()> {
        let names: HashSet<String> = names().collect();
        let entries = env_file::read(path, optional, |name| names.contains(name))
            .map_err(|sentence| Error::new(ErrorKind::Config, sentence))?;
        for entry in entries {
            let origin = Origin::File(entry.line, path.display().to_string());
            self.add(&entry.name, origin, entry.text);
        }
        Ok(())
    }

    fn add_options(&mut self, matches: &ArgMatches) {
        for setting in settings() {
            let id = setting.get_id().as_str();
            if matches!(matches.try_contains_id(id), Ok(true))
                && matches.value_source(id) == Some(ValueSource::CommandLine)
                && let Some(text) = matches.get_one::<OsString>(id)
            {
                self.add(&variable(&setting), Origin::Option, text);
            }
        }
    }

    /// Sets the setting `name`, as an option of the command line does.
    pub fn set_option(&mut self, name: &str, text: impl Into<OsString>) {
        self.add(name, Origin::Option, text);
    }

    /// Sets the setting `name`, whatever the environment says; for programs that use this crate.
    pub fn set(&mut self, name: &str, text: impl Into<OsString>) {
        self.add(name, Origin::Caller, text);
    }

    fn add(&mut self, name: &str, origin: Origin, text: impl Into<OsString>) {
        let text = text.into();
        let wins = self.0.get(name).is_none_or(|(known, _)| origin >= *known);
        if wins && !text.to_string_lossy().trim().is_empty() {
            self.0.insert(name.to_owned(), (origin, text));
        }
    }

    /// Whether the setting `name` has a text, or is left to its default.
    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The text of `name` without the spaces around it.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>> {
        let Some((_, text)) = self.0.get(name) else { return Ok(None) };
        let text = text.to_str().ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("{name} is not UTF-8; set it to UTF-8 text"))
        })?;
        Ok(Some(text.trim()))
    }

    /// Parses the settings of `T`.
    pub(super) fn read<T: Args>(&self) -> Result<T> {
        let command = Command::new("settings").no_binary_name(true).disable_help_flag(true);
        // The texts are passed as options. Left to itself, clap would not read `.env`, and would take
        // an empty variable for a value.
        let mut command = T::augment_args(command).mut_args(|arg| arg.env(None::<&'static str>));
        command.build();
        let settings: Vec<Arg> = command.get_arguments().cloned().collect();
        let mut options = Vec::new();
        for setting in &settings {
            if let (Some(text), Some(long)) = (self.text(&variable(setting))?, setting.get_long()) {
                options.push(format!("--{long}={text}"));
            }
        }
        let parsed = command.try_get_matches_from(options);
        parsed.and_then(|matches| T::from_arg_matches(&matches)).map_err(|error| {
            let invalid = error.get(ContextKind::InvalidArg).map(ToString::to_string);
            let setting = settings.iter().find(|setting| Some(setting.to_string()) == invalid);
            match (setting, error.source()) {
                (Some(setting), Some(remedy)) => {
                    self.unusable(&variable(setting), &remedy.to_string())
                }
                _ => Error::new(ErrorKind::Config, error.to_string()),
            }
        })
    }

    /// The sentence for a text that cannot be used; `remedy` says what to give instead.
    pub(super) fn unusable(&self, name: &str, remedy: &str) -> Error {
        let secret = settings()
            .iter()
            .any(|setting| variable(setting) == name && setting.is_hide_env_values_set());
        // Some types name the setting themselves.
        let remedy =
            remedy.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(remedy);
        let detail = match self.0.get(name) {
            Some((origin, text)) if !secret => {
                let shown: String = text.to_string_lossy().trim().chars().take(80).collect();
                format!("{name}={shown} ({origin}) cannot be used: {remedy}")
            }
            Some((origin, _)) => format!("{name} ({origin}) cannot be used: {remedy}"),
            None => format!("{name} cannot be used: {remedy}"),
        };
        Error::new(ErrorKind::Config, detail)
    }
}

/// The variables that are read.
fn names() -> impl Iterator<Item = String> {
    settings()
        .into_iter()
        .map(|setting| variable(&setting))
        .chain(CACHE_VARIABLES.map(str::to_owned))
}

impl fmt::Debug for Values {
    /// Without the texts: some are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").finish_non_exhaustive()
    }
}

//! What is made from the declarations of the settings: the options of a command, `.env.example` and
//! the tables of `docs/configuration.md`.

use std::error::Error as _;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, Command, Id, value_parser};

use super::options::Group;

/// The option that names a file of settings.
pub(super) const ENV_FILE: &str = "env_file";

/// `command` with the settings of `groups` as options. Their texts are parsed later, by
/// [`Values::of_command`](super::Values::of_command) and its readers: only they know where a text comes
/// from, and can say so if it cannot be used.
#[must_use]
pub fn with_settings(command: Command, groups: &[Group]) -> Command {
    let own: Vec<Id> = command.get_arguments().map(|arg| arg.get_id().clone()).collect();
    let command = groups.iter().fold(command, |command, group| group.augment(command));
    let command = command.mut_args(|arg| {
        if own.contains(arg.get_id()) {
            return arg;
        }
        arg.value_parser(value_parser!(OsString)).value_name("VALUE").hide_env_values(true)
    });
    command.arg(
        Arg::new(ENV_FILE)
            .long("env-file")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Read settings from this file, one NAME=value per line")
            .help_heading("Settings"),
    )
}

/// [`with_settings`] for the server's own commands, which also read `.env` in the current folder. Other
/// commands do not: that folder may be one of photos or of a model, from anywhere.
#[must_use]
pub fn with_server_settings(command: Command, groups: &[Group]) -> Command {
    with_settings(command, groups).mut_arg(ENV_FILE, |arg| arg.default_value(".env"))
}

/// Every setting, in the order of the documentation.
pub(super) fn settings() -> Vec<Arg> {
    let none = Command::new("settings");
    let all = Group::ALL.iter().fold(none, |command, group| group.augment(command));
    all.get_arguments().cloned().collect()
}

/// The variable of a setting: the name of its field in capitals.
pub(super) fn variable(setting: &Arg) -> String {
    setting.get_id().as_str().to_uppercase()
}

/// The text of `.env.example`: every setting, commented out, with its default.
#[must_use]
pub fn env_example() -> String {
    let mut text = String::from(
        "# Settings of cutline. Copy this file to .env in the folder in which you start cutline serve,\n\
         # or give it to any command with --env-file, and uncomment what you want to change.\n\
         # The environment wins over the file, and options of the command line (--port for PORT) win\n\
         # over both. An empty value counts as not set.\n",
    );
    for (heading, settings) in by_heading() {
        text += &format!("\n# {heading}\n");
        for setting in settings {
            let default = match default(&setting) {
                words if words.contains(' ') => format!("\"{words}\""),
                word => word,
            };
            let (meaning, variable) = (meaning(&setting), variable(&setting));
            text += &format!("\n# {meaning}\n#{variable}={default}\n");
        }
    }
    text
}

/// The tables of `docs/configuration.md`, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::new();
    for (heading, settings) in by_heading() {
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!("### {heading}\n\n| Variable | Option | Default | Values | Meaning |\n");
        text += "| --- | --- | --- | --- | --- |\n";
        for setting in settings {
            let option = setting.get_long().unwrap_or_default();
            let default = match default(&setting) {
                none if none.is_empty() => none,
                text => format!("`{text}`"),
            };
            text += &format!(
                "| `{}` | `--{option}` | {default} | {} | {} |\n",
                variable(&setting),
                accepted_values(&setting).unwrap_or_default(),
                meaning(&setting)
            );
        }
    }
    text
}

fn by_heading() -> Vec<(String, Vec<Arg>)> {
    let mut groups: Vec<(String, Vec<Arg>)> = Vec::new();
    for setting in settings() {
        let heading = setting.get_help_heading().unwrap_or_default();
        match groups.iter_mut().find(|(known, _)| known == heading) {
            Some((_, settings)) => settings.push(setting),
            None => groups.push((heading.to_owned(), vec![setting])),
        }
    }
    groups
}

/// The default, or nothing for a setting that is unset by default.
fn default(setting: &Arg) -> String {
    let text = setting.get_default_values().first();
    text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn meaning(setting: &Arg) -> String {
    setting.get_help().map(ToString::to_string).unwrap_or_default()
}

/// What the parser of `setting` asks for when it is given something else, so that documentation and
/// error messages agree. `None` if it takes any text, or if there is more to say than fits a table.
fn accepted_values(setting: &Arg) -> Option<String> {
    let setting = setting.clone().env(None::<&'static str>);
    let option = format!("--{}=?", setting.get_long()?);
    let command = Command::new("setting").no_binary_name(true).arg(setting);
    let remedy = command.try_get_matches_from([option]).err()?.source()?.to_string();
    let values = remedy.strip_prefix("give ").or_else(|| remedy.strip_prefix("must be "))?;
    let (values, _) = values.split_once(": ").unwrap_or((values, ""));
    Some(values.strip_prefix("one of ").unwrap_or(values).to_owned())
}

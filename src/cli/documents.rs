//! `cutline openapi`, `cutline completions` and `cutline man`: documents generated from the program.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use clap_mangen::Man;

use super::print;
use crate::http;
use cutline_error::{Error, ErrorKind, Result};

pub(super) const OPENAPI: &str = "openapi";
pub(super) const COMPLETIONS: &str = "completions";
pub(super) const MAN: &str = "man";

pub(super) fn openapi_command() -> Command {
    Command::new(OPENAPI)
        .about("Prints the HTTP API as an OpenAPI 3.1 document")
        .after_help("Example:\n  cutline openapi > openapi.json")
}

pub(super) fn openapi() -> Result<ExitCode> {
    print(http::contract_json()).map(|()| ExitCode::SUCCESS)
}

pub(super) fn completions_command() -> Command {
    Command::new(COMPLETIONS)
        .about("Prints completions for a shell")
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .help("The shell")
                .value_parser(value_parser!(Shell))
                .required(true),
        )
        .after_help(
            "Examples:\n  \
             cutline completions bash > ~/.local/share/bash-completion/completions/cutline\n  \
             cutline completions zsh > ~/.zfunc/_cutline\n  \
             cutline completions fish > ~/.config/fish/completions/cutline.fish",
        )
}

pub(super) fn man_command() -> Command {
    Command::new(MAN)
        .about("Prints the manual page, or writes one per command")
        .arg(
            Arg::new("dir")
                .long("dir")
                .value_name("FOLDER")
                .help("Write the pages of all commands to this folder")
                .value_parser(value_parser!(PathBuf)),
        )
        .after_help(
            "Examples:\n  \
             cutline man | man -l -\n  \
             cutline man --dir ~/.local/share/man/man1",
        )
}

pub(super) fn completions(matches: &ArgMatches) -> Result<ExitCode> {
    let Some(shell) = matches.get_one::<Shell>("shell") else {
        return Err(Error::internal("the required argument is missing"));
    };
    let mut script = Vec::new();
    let mut command = super::command();
    clap_complete::generate(*shell, &mut command, env!("CARGO_PKG_NAME"), &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(matches: &ArgMatches) -> Result<ExitCode> {
    // Without a page for `cutline help`.
    let command = super::command().disable_help_subcommand(true);
    if let Some(folder) = matches.get_one::<PathBuf>("dir") {
        let written = clap_mangen::generate_to(command, folder);
        written.map_err(|error| {
            let folder = folder.display();
            let detail = format!("{folder}: cannot be written ({error}); create the folder first");
            Error::new(ErrorKind::Io, detail)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Vec::new();
    Man::new(command)
        .render(&mut page)
        .map_err(|error| Error::internal("the manual cannot be generated").with_source(error))?;
    print(&String::from_utf8_lossy(&page))?;
    Ok(ExitCode::SUCCESS)
}

//! `cutline openapi`

use std::process::ExitCode;

use clap::Command;

use crate::http;
use cutline_error::Result;

pub(super) const NAME: &str = "openapi";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Prints the contract of the HTTP server as an OpenAPI 3.1 document")
        .after_help("Example:\n  cutline openapi > openapi.json")
}

pub(super) fn run() -> Result<ExitCode> {
    super::print(http::contract_json()).map(|()| ExitCode::SUCCESS)
}

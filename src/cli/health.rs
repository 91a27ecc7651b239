//! `cutline health`: whether a server is ready, for containers and scripts that have no HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use ureq::http::Uri;

use super::{FAILED, complain, print};
use crate::config::{self, Group, Values};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "health";

const PATH: &str = "/health/ready";

/// How long each part of the exchange may take: connecting, waiting, reading.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A longer answer is not read.
const MAX_ANSWER: u64 = 16 << 10;

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Asks a running server whether it is ready; exit status 0 for yes, 1 for no")
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .help("Address to ask, http://HOST[:PORT][/PATH] [default: from HOST and PORT]"),
        )
        .after_help(
            "Examples:\n  \
             cutline health\n  \
             cutline health --port 8080\n  \
             cutline health --url http://captions.local:8000",
        );
    config::with_server_settings(command, &[Group::Server])
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let url = match matches.get_one::<String>("url") {
        Some(url) => parse(url)?,
        None => {
            let values = Values::of_command(matches)?;
            let (host, port) = config::listen_address(&values)?;
            url_of_server(&host, port)
        }
    };
    match ask(&url) {
        Ok((200, _)) => {
            print("ready\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        Ok((status, body)) => complain(&format!("{url} answers {status}: {}", reason(&body))),
        Err(error) => {
            let cause = match error {
                ureq::Error::Io(error) => error.to_string(),
                error => error.to_string(),
            };
            complain(&format!("{url} does not answer ({cause}); is the server running there?"));
        }
    }
    Ok(ExitCode::from(FAILED))
}

/// The sentence of a problem document.
fn reason(body: &str) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
    detail.unwrap_or("this is not an answer of cutline").to_owned()
}

/// The server that listens on `host`. One that listens on all interfaces is asked on this machine.
fn url_of_server(host: &str, port: u16) -> String {
    let host = match host.parse() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => format!("[{}]", Ipv6Addr::LOCALHOST),
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => host.to_owned(),
    };
    format!("http://{host}:{port}{PATH}")
}

fn parse(url: &str) -> Result<String> {
    let usable = |uri: &Uri| {
        let authority = uri.authority()?;
        // The port is not checked by the parser, and may be missing.
        let port = authority.as_str().strip_prefix(authority.host())?;
        let port_fits = port.is_empty() || authority.port_u16().is_some();
        (uri.scheme_str() == Some("http") && !authority.host().is_empty() && port_fits).then(|| {
            let path = uri.path_and_query().map_or(PATH, |path| match path.as_str() {
                "/" => PATH,
                path => path,
            });
            format!("http://{authority}{path}")
        })
    };
    url.parse().ok().as_ref().and_then(usable).ok_or_else(|| {
        let detail = format!(
            "--url {url} cannot be used: give http://HOST[:PORT][/PATH]; if a proxy in front \
             terminates TLS, give the address of the server behind it"
        );
        Error::new(ErrorKind::Config, detail)
    })
}

/// The status and the body of the answer.
fn ask(url: &str) -> Result<(u16, String), ureq::Error> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
        .timeout_recv_body(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        // The server is asked itself, whatever the environment says.
        .proxy(None)
        .build()
        .into();
    let mut answer = agent.get(url).call()?;
    let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
    Ok((answer.status().as_u16(), body.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_interfaces_is_asked_on_this_machine() {
        for (host, url) in [
            ("0.0.0.0", "http://127.0.0.1:8000/health/ready"),
            ("::", "http://[::1]:8000/health/ready"),
            ("fe80::1", "http://[fe80::1]:8000/health/ready"),
            ("127.0.0.1", "http://127.0.0.1:8000/health/ready"),
            ("captions.local", "http://captions.local:8000/health/ready"),
        ] {
            assert_eq!(url_of_server(host, 8000), url);
        }
    }

    #[test]
    fn urls_are_completed_or_refused() {
        for (url, expected) in [
            ("http://a:8000", "http://a:8000/health/ready"),
            ("http://a", "http://a/health/ready"),
            ("http://a/", "http://a/health/ready"),
            ("http://a:1/health/live", "http://a:1/health/live"),
            ("http://[::1]:8000", "http://[::1]:8000/health/ready"),
            ("http://[::1]", "http://[::1]/health/ready"),
        ] {
            assert_eq!(parse(url).unwrap(), expected, "{url}");
        }
        for url in [
            "https://a",
            "a:8000",
            "/health",
            "http://",
            "http://:1",
            "http://a:b",
            "http://a:70000",
            "http://a b",
            "http://u@a",
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.kind() == ErrorKind::Config && error.detail().contains("--url"), "{url}");
        }
    }

    #[test]
    fn the_reason_is_taken_from_the_problem_document() {
        assert_eq!(reason("{\"detail\": \"wait\"}"), "wait");
        assert_eq!(reason("<html>"), "this is not an answer of cutline");
    }
}

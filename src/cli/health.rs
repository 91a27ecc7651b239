//! `cutline health`: whether a server makes captions, for containers and scripts that have no other
//! program to ask with.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};

use super::{FAILED, complain, options, print};
use crate::config::{Group, Settings};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "health";

const PATH: &str = "/health/ready";

/// How long the server may take for each part of its answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// More of an answer is not read.
const MAX_ANSWER: u64 = 16 << 10;

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Asks a running server whether it makes captions; exit status 0 for yes, 1 for no")
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
    options::with_settings(command, &[Group::Server])
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let target = match matches.get_one::<String>("url") {
        Some(url) => Target::parse(url)?,
        None => {
            let settings = Settings::new(&options::values(matches, &[Group::Server])?)?;
            Target::of_server(&settings.host, settings.port)
        }
    };
    match target.ask() {
        Ok((200, _)) => {
            print("ready\n")?;
            Ok(ExitCode::SUCCESS)
        }
        Ok((status, body)) => {
            complain(&format!("{target} answers {status}: {}", reason(&body)));
            Ok(ExitCode::from(FAILED))
        }
        Err(error) => {
            complain(&format!("{target} does not answer ({error}); is the server running there?"));
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// The sentence of a problem document, or what there is instead.
fn reason(body: &str) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
    detail.unwrap_or("that is no answer of cutline").to_owned()
}

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    path: String,
}

impl Target {
    /// The server that listens on `host`: every address of the machine means this one here.
    fn of_server(host: &str, port: u16) -> Self {
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) if address.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
            Ok(IpAddr::V6(address)) if address.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
            _ => host.to_owned(),
        };
        Self { host, port, path: PATH.to_owned() }
    }

    fn parse(url: &str) -> Result<Self> {
        let unusable = || {
            Error::new(
                ErrorKind::Config,
                format!(
                    "--url {url} cannot be used: give http://HOST[:PORT][/PATH]; TLS is the \
                     proxy's, so ask the server behind it"
                ),
            )
        };
        let rest = url.strip_prefix("http://").ok_or_else(unusable)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = if path.is_empty() { PATH.to_owned() } else { format!("/{path}") };
        // An address of version 6 stands in brackets and has colons of its own.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| unusable())?)
            }
            _ => (authority, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        // Whatever else is in it would go into the request's lines.
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || host.contains('@') || !plain(host) || !plain(&path) {
            return Err(unusable());
        }
        Ok(Self { host: host.to_owned(), port, path })
    }

    /// The status and the body of the answer.
    fn ask(&self) -> io::Result<(u16, String)> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Self { path, .. } = self;
        let host = self.authority();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        parse_answer(&String::from_utf8_lossy(&answer))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "that is no HTTP"))
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let addresses: Vec<SocketAddr> =
            (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        for address in addresses {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

/// Status and body; the body is read to the end of the connection, which is asked to close.
fn parse_answer(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let rest = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "))?;
    Some((rest.get(..3)?.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, port: u16, path: &str) -> Target {
        Target { host: host.into(), port, path: path.into() }
    }

    #[test]
    fn the_server_of_every_address_is_asked_on_this_machine() {
        for (host, asked) in [
            ("0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("127.0.0.1", "127.0.0.1"),
            ("captions.local", "captions.local"),
        ] {
            assert_eq!(Target::of_server(host, 8000), target(asked, 8000, PATH));
        }
        assert_eq!(Target::of_server("::", 1).to_string(), "http://[::1]:1/health/ready");
    }

    #[test]
    fn addresses_are_read() {
        for (url, expected) in [
            ("http://a:8000", target("a", 8000, PATH)),
            ("http://a", target("a", 80, PATH)),
            ("http://a/", target("a", 80, PATH)),
            ("http://a:1/health/live", target("a", 1, "/health/live")),
            ("http://[::1]:8000", target("::1", 8000, PATH)),
            ("http://[::1]", target("::1", 80, PATH)),
        ] {
            assert_eq!(Target::parse(url).unwrap(), expected, "{url}");
        }
        for url in [
            "https://a",
            "a:8000",
            "http://",
            "http://:1",
            "http://a:b",
            "http://a b",
            "http://u@a",
        ] {
            let error = Target::parse(url).unwrap_err();
            assert!(error.kind() == ErrorKind::Config && error.detail().contains("--url"), "{url}");
        }
    }

    #[test]
    fn answers_are_read() {
        let answer =
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\n\r\n{\"detail\": \"wait\"}";
        let (status, body) = parse_answer(answer).unwrap();
        assert_eq!((status, reason(&body).as_str()), (503, "wait"));
        assert_eq!(reason("<html>"), "that is no answer of cutline");
        assert!(parse_answer("SSH-2.0-OpenSSH\r\n\r\n").is_none());
        assert!(parse_answer("HTTP/1.1 20").is_none());
    }
}

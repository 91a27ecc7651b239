//! Where a library in PostgreSQL is: `postgres://user:password@host/database`.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use cutline_error::{Error, ErrorKind, Result};
use postgres::config::{Host, SslMode};
use postgres::{Client, Config, NoTls};
use rustls::ClientConfig;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls;

/// How long to wait for a server that does not answer, unless the address says otherwise.
const CONNECT: Duration = Duration::from_secs(10);

/// An address, understood.
pub(super) struct Address {
    config: Config,
    tls: Option<ClientConfig>,
    /// The address without the password.
    pub(super) name: String,
}

/// Without the password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Address {
    /// # Errors
    /// [`Config`](ErrorKind::Config): the address is not understood.
    pub(super) fn new(url: &str) -> Result<Arc<Self>> {
        let (url, verify) = Verify::take(url);
        let mut config: Config = url.parse().map_err(|_| wrong("cannot be understood"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(wrong("names no host"));
        }
        if config.get_application_name().is_none() {
            config.application_name("cutline");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        let name = name(&config);
        let tls = match (config.get_ssl_mode(), verify) {
            (SslMode::Disable, _) => None,
            (_, Verify::Nothing) => Some(tls::unverified()?),
            (_, Verify::Public) => Some(tls::public()?),
            (_, Verify::With(path)) => {
                let pem = fs::read(&path).map_err(|error| {
                    Error::new(
                        ErrorKind::Config,
                        format!(
                            "sslrootcert {path} of the library cannot be read ({error}); correct it"
                        ),
                    )
                })?;
                Some(tls::with_roots(&pem)?)
            }
        };
        Ok(Arc::new(Self { config, tls, name }))
    }

    pub(super) fn connect(&self) -> std::result::Result<Client, postgres::Error> {
        match &self.tls {
            Some(tls) => self.config.connect(MakeRustlsConnect::new(tls.clone())),
            None => self.config.connect(NoTls),
        }
    }
}

/// Which certificates of the server are good.
enum Verify {
    /// All, as with libpq.
    Nothing,
    /// Those of public authorities.
    Public,
    /// Those of the authorities in a file.
    With(String),
}

impl Verify {
    /// Takes what the crate does not know out of the address.
    fn take(url: &str) -> (String, Self) {
        let Some((base, parameters)) = url.split_once('?') else {
            return (url.to_owned(), Self::Nothing);
        };
        let mut verify = Self::Nothing;
        let mut kept = Vec::new();
        for parameter in parameters.split('&') {
            match parameter.split_once('=') {
                Some(("sslrootcert", path)) => verify = Self::With(path.to_owned()),
                Some(("sslmode", "verify-full" | "verify-ca")) => {
                    kept.push("sslmode=require");
                    if matches!(verify, Self::Nothing) {
                        verify = Self::Public;
                    }
                }
                _ => kept.push(parameter),
            }
        }
        (format!("{base}?{}", kept.join("&")), verify)
    }
}

fn name(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        #[cfg(unix)]
        Some(Host::Unix(folder)) => folder.display().to_string(),
        None => config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default(),
    };
    let port = match config.get_ports().first() {
        Some(port) if *port != 5432 => format!(":{port}"),
        _ => String::new(),
    };
    let database = config.get_dbname().or_else(|| config.get_user()).unwrap_or_default();
    format!("postgres://{host}{port}/{database}")
}

fn wrong(what: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "the address of the library {what}; write postgres://USER:PASSWORD@HOST/DATABASE, with % and two \
             digits for other characters"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_passwords() {
        for (url, name) in [
            ("postgres://kim:secret@db.example.org/photos", "postgres://db.example.org/photos"),
            (
                "postgresql://kim:secret@[::1]:6543/photos?sslmode=disable",
                "postgres://::1:6543/photos",
            ),
            ("postgres://kim:secret@%2Frun%2Fpg/photos", "postgres:///run/pg/photos"),
            ("postgres://kim@host?password=secret&sslmode=verify-full", "postgres://host/kim"),
        ] {
            let address = Address::new(url).unwrap();
            assert_eq!(address.name, name);
            assert_eq!(format!("{address:?}"), name);
        }
        for (url, hint) in [
            ("postgres://kim:secret@host:port/photos", "cannot be understood"),
            ("postgres://kim:secret@host/photos?sslmode=secret", "cannot be understood"),
            ("postgres://", "names no host"),
            ("postgres://kim:secret@host/x?sslrootcert=/nowhere.pem", "/nowhere.pem"),
        ] {
            let error = Address::new(url).unwrap_err();
            assert!(error.detail().contains(hint), "{error}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }
}

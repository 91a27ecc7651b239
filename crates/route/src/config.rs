//! The file of backends and routes.

use std::collections::HashSet;

use cutline_error::{Error, ErrorKind, Result};
use serde::Deserialize;
use url::{Host, Url};

use crate::{Price, Retry};

/// The largest file that is read.
pub const MAX_BYTES: usize = 256 * 1024;
/// The most backends in a file.
pub const MAX_BACKENDS: usize = 64;
/// The most routes in a file.
pub const MAX_ROUTES: usize = 64;
/// The longest name.
const MAX_NAME: usize = 64;
/// The longest time for one attempt or one request, in seconds.
const MAX_SECONDS: f64 = 3600.0;

/// Backends, and the routes over them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// Everything that can answer.
    pub backends: Vec<Backend>,
    /// In the order in which they are compared with a request.
    pub routes: Vec<Route>,
}

/// How a backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A model in this process.
    Local,
    /// `POST …/v1/chat/completions`.
    #[serde(rename = "openai")]
    OpenAi,
    /// `POST …/api/chat`.
    Ollama,
}

impl Kind {
    /// The name in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::OpenAi => "openai",
            Self::Ollama => "ollama",
        }
    }
}

/// Whether a photo stays on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Privacy {
    /// It does.
    Local,
    /// It leaves the machine.
    Remote,
}

impl Privacy {
    /// The name in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ability {
    /// Captions.
    Caption,
    /// Alternative texts.
    AltText,
    /// Word by word. Without it, an answer arrives in one piece.
    Stream,
}

impl Ability {
    const ALL: [Self; 3] = [Self::Caption, Self::AltText, Self::Stream];
}

/// Something that can answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// Its name in answers, logs and metrics.
    pub name: String,
    /// How it is spoken to.
    pub kind: Kind,
    /// Its address without a slash at the end; empty for a local model.
    pub base_url: String,
    /// The name of the model there; for a local one its path, its hub id, or a name of `MODELS`. Empty
    /// for the main model.
    pub model: String,
    /// The environment variable with the API key.
    pub api_key_env: Option<String>,
    /// The file with the API key.
    pub api_key_file: Option<String>,
    /// What the model is told to do, instead of the usual instruction.
    pub instruction: Option<String>,
    /// The time for one attempt, in seconds.
    pub timeout_s: f64,
    /// Requests at a time.
    pub max_parallel: usize,
    /// What it can do.
    pub supports: Vec<Ability>,
    /// What it takes.
    pub price: Price,
    /// Whether photos stay on this machine.
    pub privacy: Privacy,
}

/// A member of a tier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Member {
    /// Its index among the backends.
    pub backend: usize,
    /// Its share of the requests, compared with the others of its tier.
    pub weight: f64,
}

/// Which backends answer a request, in which order.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its name, which is also a name of a model.
    pub name: String,
    /// More names of models that mean this route.
    pub models: Vec<String>,
    /// Whether it takes requests that name no model.
    pub default: bool,
    /// Only requests of these styles; empty for all.
    pub styles: Vec<String>,
    /// The backends: those of the second tier are asked when no backend of the first one answers, and
    /// so on.
    pub tiers: Vec<Vec<Member>>,
    /// When a backend gets a request again.
    pub retry: Retry,
    /// The time for the whole request, in seconds.
    pub deadline_s: f64,
    /// Whether photos may leave the machine.
    pub allow_remote: bool,
    /// Whether the next tier is asked when the queue of a local model is full.
    pub overflow: bool,
    /// Answers with less confidence are asked for again in the next tier.
    pub escalate_below: Option<f64>,
}

impl Route {
    /// All members with their tiers.
    pub(crate) fn members(&self) -> impl Iterator<Item = (usize, &Member)> {
        let tiers = self.tiers.iter().enumerate();
        tiers.flat_map(|(tier, members)| members.iter().map(move |member| (tier, member)))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default, rename = "backend")]
    backends: Vec<RawBackend>,
    #[serde(default, rename = "route")]
    routes: Vec<RawRoute>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBackend {
    name: String,
    kind: Kind,
    #[serde(default)]
    base_url: String,
    #[serde(default)]
    model: String,
    api_key_env: Option<String>,
    api_key_file: Option<String>,
    instruction: Option<String>,
    #[serde(default = "usual_timeout")]
    timeout_s: f64,
    max_parallel: Option<usize>,
    supports: Option<Vec<Ability>>,
    #[serde(default)]
    price: Price,
    privacy: Option<Privacy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    name: String,
    #[serde(default, rename = "match")]
    matching: RawMatch,
    backends: Vec<Vec<RawMember>>,
    #[serde(default)]
    retry: Retry,
    #[serde(default = "usual_deadline")]
    deadline_s: f64,
    #[serde(default)]
    allow_remote: bool,
    #[serde(default)]
    overflow: bool,
    escalate_below: Option<f64>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RawMatch {
    models: Vec<String>,
    styles: Vec<String>,
    default: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawMember {
    Name(String),
    Weighted(Weighted),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Weighted {
    name: String,
    weight: f64,
}

const fn usual_timeout() -> f64 {
    20.0
}

const fn usual_deadline() -> f64 {
    60.0
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): it is not TOML, or names something that cannot be; the sentence says
    /// what, and what to do.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_BYTES {
            return Err(wrong(format!("it has more than {MAX_BYTES} bytes; shorten it")));
        }
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            wrong(format!("line {line}: {}; see docs/routing.md", error.message().trim()))
        })?;
        if raw.backends.len() > MAX_BACKENDS || raw.routes.len() > MAX_ROUTES {
            return Err(wrong(format!(
                "it has more than {MAX_BACKENDS} backends or {MAX_ROUTES} routes; leave some out"
            )));
        }
        let backends =
            raw.backends.into_iter().map(RawBackend::check).collect::<Result<Vec<Backend>>>()?;
        distinct("backend", backends.iter().map(|backend| backend.name.as_str()))?;
        let check = |route: RawRoute| route.check(&backends);
        let routes = raw.routes.into_iter().map(check).collect::<Result<Vec<Route>>>()?;
        distinct("route", routes.iter().map(|route| route.name.as_str()))?;
        Ok(Self { backends, routes })
    }
}

fn wrong(detail: String) -> Error {
    Error::new(ErrorKind::Config, detail)
}

/// Names are labels of metrics and values of headers.
fn check_name(what: &str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
        return Err(wrong(format!(
            "the {what} '{shown}' cannot have that name; give 1 to {MAX_NAME} letters, digits, or one \
             of - _ . : /"
        )));
    }
    Ok(())
}

fn distinct<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(wrong(format!("there are two {what}s named '{name}'; rename one")));
        }
    }
    Ok(())
}

fn check_seconds(of: &str, setting: &str, value: f64) -> Result<()> {
    if value > 0.0 && value <= MAX_SECONDS {
        return Ok(());
    }
    Err(wrong(format!("{of}: {setting} must be more than 0 and at most {MAX_SECONDS}")))
}

impl RawBackend {
    fn check(self) -> Result<Backend> {
        let name = self.name;
        check_name("backend", &name)?;
        let of = format!("backend '{name}'");
        check_seconds(&of, "timeout_s", self.timeout_s)?;
        if self.max_parallel == Some(0) {
            return Err(wrong(format!("{of}: max_parallel must be at least 1")));
        }
        if !self.price.is_sound() {
            return Err(wrong(format!("{of}: prices must be numbers from 0")));
        }
        if self.api_key_env.is_some() && self.api_key_file.is_some() {
            return Err(wrong(format!("{of} has api_key_env and api_key_file; leave one out")));
        }
        let (base_url, privacy) = if self.kind == Kind::Local {
            let upstream = [&self.api_key_env, &self.api_key_file, &self.instruction];
            if !self.base_url.is_empty() || upstream.into_iter().any(Option::is_some) {
                return Err(wrong(format!(
                    "{of} is local, so it has no address, key or instruction; leave them out"
                )));
            }
            if self.privacy == Some(Privacy::Remote) {
                return Err(wrong(format!("{of} is local; leave privacy out")));
            }
            (String::new(), Privacy::Local)
        } else {
            if self.model.is_empty() {
                return Err(wrong(format!("{of} needs the name of a model; add model")));
            }
            address(&of, &self.base_url, self.privacy)?
        };
        Ok(Backend {
            name,
            kind: self.kind,
            base_url,
            model: self.model,
            api_key_env: self.api_key_env,
            api_key_file: self.api_key_file,
            instruction: self.instruction,
            timeout_s: self.timeout_s,
            max_parallel: self.max_parallel.unwrap_or(match self.kind {
                Kind::Local => usize::MAX,
                Kind::OpenAi | Kind::Ollama => 8,
            }),
            supports: self.supports.unwrap_or_else(|| Ability::ALL.to_vec()),
            price: self.price,
            privacy,
        })
    }
}

/// The address without a slash at the end, and whether photos leave the machine on their way to it.
fn address(of: &str, text: &str, privacy: Option<Privacy>) -> Result<(String, Privacy)> {
    let usual = "give an address such as http://127.0.0.1:11434 in base_url";
    let url = Url::parse(text).map_err(|error| wrong(format!("{of}: {error}; {usual}")))?;
    let bare = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || !bare {
        return Err(wrong(format!(
            "{of}: the address must start with http:// or https:// and have no password, ? or #; {usual}"
        )));
    }
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.to_canonical().is_loopback(),
        None => return Err(wrong(format!("{of}: the address names no host; {usual}"))),
    };
    if privacy == Some(Privacy::Local) && !loopback {
        return Err(wrong(format!(
            "{of} is on another machine, so photos leave this one; leave privacy out, and set \
             allow_remote = true in the routes that may use it"
        )));
    }
    let usual = if loopback { Privacy::Local } else { Privacy::Remote };
    let base = url.as_str().trim_end_matches('/').to_owned();
    Ok((base, privacy.unwrap_or(usual)))
}

impl RawRoute {
    fn check(self, backends: &[Backend]) -> Result<Route> {
        let name = self.name;
        check_name("route", &name)?;
        let of = format!("route '{name}'");
        check_seconds(&of, "deadline_s", self.deadline_s)?;
        let Retry { attempts, base_ms, cap_ms, budget } = self.retry;
        let share = budget.is_finite() && (0.0..=1.0).contains(&budget);
        if !(1..=5).contains(&attempts) || base_ms > 60_000 || cap_ms > 60_000 || !share {
            return Err(wrong(format!(
                "{of}: in retry, give attempts from 1 to 5, base_ms and cap_ms up to 60000, and a \
                 budget from 0 to 1"
            )));
        }
        if let Some(least) = self.escalate_below
            && !(0.0..=1.0).contains(&least)
        {
            return Err(wrong(format!("{of}: escalate_below must be from 0 to 1")));
        }
        for style in &self.matching.styles {
            let known = ["caption", "alt_text", "engaging", "title", "keywords"];
            if !known.contains(&style.as_str()) {
                return Err(wrong(format!("{of}: there are the styles {}", known.join(", "))));
            }
        }
        for model in &self.matching.models {
            check_name("model", model)?;
        }
        let tiers = self.backends.into_iter().map(|tier| {
            let members = tier.into_iter().map(|member| member.check(&of, backends));
            members.collect::<Result<Vec<Member>>>()
        });
        let route = Route {
            tiers: tiers.collect::<Result<_>>()?,
            name,
            models: self.matching.models,
            default: self.matching.default,
            styles: self.matching.styles,
            retry: self.retry,
            deadline_s: self.deadline_s,
            allow_remote: self.allow_remote,
            overflow: self.overflow,
            escalate_below: self.escalate_below,
        };
        route.check_members(&of, backends)?;
        Ok(route)
    }
}

impl Route {
    fn check_members(&self, of: &str, backends: &[Backend]) -> Result<()> {
        if self.tiers.is_empty() || self.tiers.iter().any(Vec::is_empty) {
            return Err(wrong(format!(
                "{of} has a tier without backends; name at least one in each"
            )));
        }
        let mut seen = HashSet::new();
        for (_, member) in self.members() {
            let backend = &backends[member.backend];
            if !seen.insert(member.backend) {
                let name = &backend.name;
                return Err(wrong(format!("{of} names the backend '{name}' twice; remove one")));
            }
            // Consent is given here and nowhere else.
            if backend.privacy == Privacy::Remote && !self.allow_remote {
                return Err(wrong(format!(
                    "{of} would send photos to '{}', which is not on this machine; set allow_remote = \
                     true in this route if they may leave it, or remove the backend",
                    backend.name
                )));
            }
        }
        Ok(())
    }
}

impl RawMember {
    fn check(self, of: &str, backends: &[Backend]) -> Result<Member> {
        let (name, weight) = match self {
            Self::Name(name) => (name, 1.0),
            Self::Weighted(Weighted { name, weight }) => (name, weight),
        };
        let backend =
            backends.iter().position(|backend| backend.name == name).ok_or_else(|| {
                let shown: String =
                    name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
                wrong(format!("{of} names the backend '{shown}', which is not in the file; add it"))
            })?;
        if !(weight > 0.0 && weight <= 1e6) {
            return Err(wrong(format!("{of}: weights must be more than 0 and at most 1000000")));
        }
        Ok(Member { backend, weight })
    }
}

//! Models elsewhere: a small client of two protocols.
//!
//! - `network` makes connections; tests replace it;
//! - `exchange` sends one request and gives its answer in bounded pieces;
//! - `openai` and `ollama` know the fields of their protocol;
//! - `answer` is what is understood of an answer so far.
//!
//! A connection serves one request, so that nothing is left of it when the client leaves. Redirects are not
//! followed, the environment's proxies are not used, and neither the key nor the text of an answer is
//! ever logged.

mod answer;
mod exchange;
mod network;
mod ollama;
mod openai;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use self::answer::Answer;
use self::exchange::{Address, Client};
#[cfg(test)]
pub(super) use self::network::Io;
pub(super) use self::network::{Dial, SystemDial};
use crate::captioner::{CaptionParams, Foreign, SendablePhoto, Style};
use crate::engine::FinishReason;
use cutline_error::{Error, ErrorKind, Result};
use cutline_route::{Ability, Backend, Failure, Kind, Usage};

/// A caption of a language model that counts its words in another way needs more tokens than one of BLIP.
const LEAST_TOKENS: usize = 128;

/// An API key. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key in this text; spaces around it do not count.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): it is empty, or has characters that no header can have.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let detail =
                "the key is empty or has characters that no key has; check where it comes from";
            return Err(Error::new(ErrorKind::Config, detail));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// One model elsewhere.
#[derive(Debug)]
pub(super) struct Upstream {
    kind: Kind,
    model: String,
    /// Tells it from all others: its name, its address and its model.
    identity: String,
    instruction: Option<String>,
    streams: bool,
    client: Client,
}

/// An answer, and what it took.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) foreign: Foreign,
    pub(super) usage: Usage,
}

impl Upstream {
    /// The model that `backend` describes.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): its address cannot be used.
    pub(super) fn new(backend: &Backend, key: Option<ApiKey>, dial: Arc<dyn Dial>) -> Result<Self> {
        let address = Address::parse(&backend.base_url)?;
        Ok(Self {
            kind: backend.kind,
            model: backend.model.clone(),
            identity: format!("{} {} {:?}", backend.name, backend.base_url, backend.model),
            instruction: backend.instruction.clone(),
            streams: backend.supports.contains(&Ability::Stream),
            client: Client::new(address, key.map(|key| key.0), dial)?,
        })
    }

    /// Who is asked for what: all that an answer depends on beside the photo.
    pub(super) fn asked(&self, params: &CaptionParams) -> String {
        let CaptionParams { do_sample, temperature, top_p, seed, num_captions, .. } = *params;
        let sampling = do_sample.then_some((temperature, top_p, seed));
        format!(
            "{} {} {:?} {} {num_captions} {sampling:?}",
            self.kind.as_str(),
            self.identity,
            self.instruction(params),
            tokens(params),
        )
    }

    /// Describes `photo`. `on_sending` is called when there is a connection, just before the photo leaves;
    /// `on_text` gets the text so far, each time that it has grown.
    pub(super) async fn describe(
        &self,
        photo: &SendablePhoto,
        params: &CaptionParams,
        on_sending: impl FnOnce() + Send,
        mut on_text: impl FnMut(&str) + Send,
    ) -> Result<Answered, Failure> {
        let begin = Instant::now();
        // Several captions come in one piece, and so does a text that is changed afterwards.
        let stream = self.streams && params.num_captions == 1 && params.style == Style::Caption;
        let request = Asked {
            model: &self.model,
            instruction: &self.instruction(params),
            image: &STANDARD.encode(&photo.jpeg),
            params,
            tokens: tokens(params),
            stream,
        };
        let (path, body) = match self.kind {
            Kind::Ollama => ("/api/chat", ollama::request(&request)),
            Kind::OpenAi | Kind::Local => ("/v1/chat/completions", openai::request(&request)),
        };
        let body = body.to_string().into_bytes();
        let mut body = self.client.post(path, body, on_sending).await?;
        let mut answer = Answer::default();
        if stream {
            while let Some(line) = body.line().await? {
                let grown = match self.kind {
                    Kind::Ollama => ollama::line(&line, &mut answer)?,
                    Kind::OpenAi | Kind::Local => openai::line(&line, &mut answer)?,
                };
                if grown {
                    on_text(answer.so_far());
                }
                if answer.ended {
                    break;
                }
            }
        } else {
            let bytes = body.whole().await?;
            match self.kind {
                Kind::Ollama => ollama::whole(&bytes, &mut answer)?,
                Kind::OpenAi | Kind::Local => openai::whole(&bytes, &mut answer)?,
            }
        }
        let usage = answer.usage;
        let foreign = answer.finish(&self.model, begin.elapsed())?;
        Ok(Answered { foreign, usage })
    }

    /// Whether the backend is there: it answers a small question, whatever it says.
    pub(super) async fn is_alive(&self, limit: Duration) -> bool {
        let path = match self.kind {
            Kind::Ollama => "/api/tags",
            Kind::OpenAi | Kind::Local => "/v1/models",
        };
        let asked = tokio::time::timeout(limit, self.client.get(path)).await;
        matches!(asked, Ok(Ok(status)) if status < 500)
    }

    fn instruction(&self, params: &CaptionParams) -> String {
        // A prompt of the library says the whole.
        let asked = params.recipe.as_ref().and_then(|recipe| recipe.instruction());
        if let Some(asked) = asked {
            return asked.to_owned();
        }
        let most = params.text_style().most();
        let mut text = match (&self.instruction, params.style) {
            (Some(own), _) => own.clone(),
            (None, Style::Caption) => {
                "Describe this image in one short sentence. Answer with the sentence only."
                    .to_owned()
            }
            (None, Style::AltText) => {
                format!(
                    "Write alt text for this image: one sentence of at most {most} characters for \
                     people who cannot see it. Answer with the text only."
                )
            }
            (None, Style::Engaging) => {
                let emoji = if params.emoji { "with one or two emoji" } else { "without emoji" };
                format!(
                    "Write a short, warm post about this image, {emoji}, of at most {most} characters. Say \
                     nothing that it does not show. Answer with the text only."
                )
            }
            (None, Style::Title) => {
                format!(
                    "Write a title for this image of at most {most} characters. Answer with the title only."
                )
            }
            (None, Style::Keywords) => {
                "Name up to ten things in this image, separated by commas. Answer with the words only."
                    .to_owned()
            }
        };
        if let Some(prompt) = &params.prompt {
            text.push_str(" Begin with these words: ");
            text.push_str(prompt);
        }
        text
    }
}

/// The most tokens of an answer.
fn tokens(params: &CaptionParams) -> usize {
    params.max_new_tokens.max(LEAST_TOKENS)
}

/// What is asked of a model, for the protocols.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    model: &'a str,
    instruction: &'a str,
    /// In base64.
    image: &'a str,
    params: &'a CaptionParams,
    tokens: usize,
    stream: bool,
}

/// Why a text ends, as both protocols say it.
fn finish_reason(reason: Option<&str>) -> FinishReason {
    match reason {
        Some("length") => FinishReason::Length,
        _ => FinishReason::Stop,
    }
}

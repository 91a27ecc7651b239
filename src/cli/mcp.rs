//! `cutline mcp`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use rmcp::service::{RoleServer, ServerInitializeError, ServiceExt};
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::stdio;
use tokio::sync::{OnceCell, SetOnce};

use super::{FAILED, runtime, unparsed};
use crate::captioner::{
    Budget, Captioner, CaptionerSettings, Decoders, ImageMemory, Photo, Tagger, WORKERS_ON_CPU,
};
use crate::config::{
    self, Group, LogSettings, Values, captioner_settings, fetch_settings, library_address,
    tag_vocabulary,
};
use crate::fetch::{FetchSettings, FetchSources, Fetcher};
use crate::http::image_in_text;
use crate::mcp::{Backend, Done, Folders, Tools};
use crate::telemetry::{self, Output as LogOutput};
use crate::vocabularies;
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::DecodeLimits;
use cutline_tags::{Source, Vocabulary};

pub(super) const NAME: &str = "mcp";
const GROUPS: [Group; 7] = [
    Group::Model,
    Group::Images,
    Group::Fetch,
    Group::Cache,
    Group::Library,
    Group::Tags,
    Group::Logs,
];

/// A message may be this many times as long as the largest image: whoever sends an image that is too large
/// gets an answer, and only absurd lines are dropped.
const LINE_PER_IMAGE: usize = 8;

#[derive(Args)]
struct McpArgs {
    /// Folders with images that may be read by their paths; without one, no file is read
    #[arg(value_name = "FOLDER")]
    folders: Vec<PathBuf>,
}

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Offers captions as tools to assistants, over standard input and output")
        .long_about(
            "Offers captions as tools to assistants such as Claude, over standard input and output, in the \
             Model Context Protocol. Assistants start this command themselves: add it to their \
             configuration.\n\n\
             Tools: caption_image, alt_text, tag_image, image_colors. Each takes an image as base64, as \
             the path of a file in one of the FOLDERs, or, with FETCH_URLS, as an address. Nothing outside of them can be read. The server of \
             cutline serve has the same tools at /mcp, without paths.",
        )
        .after_help(
            "Examples:\n  \
             cutline mcp ~/Pictures\n  \
             claude mcp add cutline -- cutline mcp ~/Pictures\n\n\
             In a file of settings of an assistant:\n  \
             {\"mcpServers\": {\"cutline\": {\"command\": \"cutline\", \"args\": [\"mcp\", \"/home/me/Pictures\"]}}}\n\n\
             The command ends when its standard input ends. Its log goes to standard error.",
        );
    config::with_settings(McpArgs::augment_args(command), &GROUPS)
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let args = McpArgs::from_arg_matches(matches).map_err(unparsed)?;
    let values = Values::of_command(matches)?;
    telemetry::start(LogSettings::for_command(&values)?, LogOutput::Stderr);
    let settings = captioner_settings(&values)?;
    let folders = Folders::open(&args.folders, settings.max_image_bytes)?;
    let fetch = fetch_settings(&values)?;
    let vocabulary = vocabulary(&values)?;
    let runtime = runtime()?;
    let result = runtime.block_on(serve(settings, fetch, folders, vocabulary));
    // Reading standard input and loading a model cannot be interrupted, so nothing waits for them.
    runtime.shutdown_background();
    result
}

/// The tags that photos may get, if the settings say so.
fn vocabulary(values: &Values) -> Result<Option<Vocabulary>> {
    let Some(source) = tag_vocabulary(values)? else { return Ok(None) };
    let store = match source {
        Source::Own(_) => None,
        Source::Library(_) => {
            let address = library_address(values)?;
            address.map(|address| cutline_library::open(&address)).transpose()?
        }
    };
    vocabularies::of_source(source, store.as_deref()).map(Some)
}

/// Answers until standard input ends. The model is loaded meanwhile.
async fn serve(
    settings: CaptionerSettings,
    fetch: FetchSettings,
    folders: Folders,
    vocabulary: Option<Vocabulary>,
) -> Result<ExitCode> {
    let backend = Local { vocabulary, ..Local::new(&settings, fetch, folders) };
    let memory = backend.decoders.memory().clone();
    let most = settings.max_image_bytes.saturating_mul(LINE_PER_IMAGE).saturating_add(1 << 20);
    let loading = backend.load(settings.with_image_memory(memory));
    let (stdin, stdout) = stdio();
    let transport =
        AsyncRwTransport::<RoleServer, _, _>::new_server(stdin, stdout).with_max_line_length(most);
    let captioner = Arc::clone(&backend.captioner);
    let serving = async {
        match Tools::new(backend).serve(transport).await {
            Ok(running) => running.waiting().await.map(drop).map_err(|error| {
                Error::internal("the protocol's library failed").with_source(error)
            }),
            // The client has left before it said anything.
            Err(ServerInitializeError::ConnectionClosed(_)) => Ok(()),
            Err(error) => Err(Error::new(
                ErrorKind::MalformedRequest,
                "standard input does not begin with the Model Context Protocol; let an assistant start \
                 this command",
            )
            .with_source(error)),
        }
    };
    // Boxed: this future is large.
    let ended = Box::pin(serving).await;
    loading.abort();
    ended?;
    let failed = matches!(captioner.get(), Some(Err(_)));
    Ok(ExitCode::from(if failed { FAILED } else { 0 }))
}

/// The tools of this process.
struct Local {
    captioner: Arc<SetOnce<Result<Captioner>>>,
    /// With the captioner's memory, so that they can be used before it is loaded.
    decoders: Decoders,
    max_image_bytes: usize,
    folders: Folders,
    fetcher: Fetcher,
    fetches: bool,
    vocabulary: Option<Vocabulary>,
    /// The vocabulary, prepared when it is first needed.
    tagger: OnceCell<Tagger>,
}

impl Local {
    fn new(settings: &CaptionerSettings, fetch: FetchSettings, folders: Folders) -> Self {
        let CaptionerSettings { max_image_bytes, max_image_pixels, memory, .. } = *settings;
        let limits = DecodeLimits { max_bytes: max_image_bytes, max_pixels: max_image_pixels };
        let workers = settings.max_workers.unwrap_or(WORKERS_ON_CPU);
        let memory = ImageMemory::new(memory.max_inflight_bytes, memory.max_decode_bytes);
        Self {
            captioner: Arc::default(),
            decoders: Decoders::with_memory(limits, workers, memory),
            max_image_bytes,
            folders,
            fetches: fetch.sources != FetchSources::Off,
            fetcher: Fetcher::new(fetch),
            vocabulary: None,
            tagger: OnceCell::new(),
        }
    }

    /// Loads the model in the background.
    fn load(&self, settings: CaptionerSettings) -> tokio::task::JoinHandle<()> {
        let loaded = Arc::clone(&self.captioner);
        tokio::spawn(async move {
            let loading = tokio::task::spawn_blocking(move || Captioner::load(&settings));
            let result = loading.await.unwrap_or_else(|join| {
                Err(Error::model("loading the model crashed; fetch its files again")
                    .with_source(join))
            });
            if let Err(error) = &result {
                // Calls are answered with it, and colours are found without a model.
                tracing::error!("{error}");
            }
            let _ = loaded.set(result);
        })
    }
}

impl Backend for Local {
    async fn captioner(&self) -> Result<Captioner> {
        // A client has a limit of its own, and can cancel the call.
        let captioner = self.captioner.wait().await.clone()?;
        if captioner.has_failed() {
            return Err(Error::model_stopped());
        }
        Ok(captioner)
    }

    async fn tagger(&self, captioner: &Captioner) -> Result<Option<Tagger>> {
        let Some(vocabulary) = &self.vocabulary else { return Ok(None) };
        let prepare = || captioner.tagger(vocabulary.clone());
        self.tagger.get_or_try_init(prepare).await.cloned().map(Some)
    }

    fn decoders(&self) -> Result<Decoders> {
        Ok(self.decoders.clone())
    }

    fn decode(&self, text: String) -> Result<Photo> {
        let bytes = image_in_text(&text, self.max_image_bytes)?;
        let permit = self.decoders.budget().take(bytes.len() as u64)?;
        Ok(Photo::new(bytes, permit))
    }

    async fn fetch(&self, url: &str, budget: &Budget) -> Result<Photo> {
        self.fetcher.fetch(url, budget).await
    }

    fn fetches(&self) -> bool {
        self.fetches
    }

    fn folders(&self) -> Option<&Folders> {
        Some(&self.folders)
    }

    fn limit(&self) -> Option<Duration> {
        None
    }

    fn ended(&self, result: Result<&Done, Error>) -> String {
        match result {
            Ok(_) => String::new(),
            Err(error) => {
                tracing::info!(code = error.kind().code(), "a call failed: {error}");
                error.detail().to_owned()
            }
        }
    }
}

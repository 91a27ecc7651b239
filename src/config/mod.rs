//! Settings: from the command line, the environment and a file to validated [`Settings`]. Nothing else
//! in the program reads the environment.
//!
//! - `options` declares every setting once, for clap;
//! - `routing` reads the file of routes, and the keys that it names; `tags` reads vocabularies and weights;
//! - `values` finds the text of each setting, `env_file` in a file; `parse` and `protection` turn it into a value;
//! - `document` makes `--help`, `.env.example` and the tables in `docs/configuration.md`;
//! - this file checks settings against each other and hands each module its own.

mod document;
mod env_file;
mod options;
mod parse;
mod protection;
mod routing;
mod tags;
mod values;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

pub use tracing::Level;

pub use self::document::{env_example, markdown, with_server_settings, with_settings};
pub use self::options::Group;
use self::options::{
    CacheOptions, FetchOptions, ImageOptions, LibraryOptions, LogOptions, ModelOptions,
    ProtectionOptions, QueueOptions, RoutingOptions, ServerOptions, SharedCacheOptions,
    TraceOptions,
};
use self::parse::FetchUrls;
pub use self::protection::{ApiKeys, CorsOrigins, ProtectionSettings, PublicEndpoints, RateLimit};
pub use self::routing::read_routes;
pub use self::tags::{read_vocabulary, tag_vocabulary, tag_weights, vocabulary_source};
pub use self::values::Values;
use crate::cache::SharedSettings;
use crate::captioner::{
    AppearanceOptions, CaptionerSettings, MemoryLimits, WORKERS_ON_CPU, decode_bytes,
};
use crate::engine::source::ModelSource;
use crate::engine::{DeviceChoice, EngineOptions, HubOptions};
use crate::fetch::{FetchSettings, FetchSources};
use crate::metrics::Metrics;
use crate::routing::RoutingSettings;
use crate::scheduler::VisionOrder;
use cutline_error::Result;
use cutline_tags::{Source, Weights};

/// Everything that `cutline serve` needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address to listen on: a name or an IP address.
    pub host: String,
    /// Port to listen on; 0 for any free port.
    pub port: u16,
    /// Port of gRPC, 0 for any free port; `None` for no gRPC.
    pub grpc_port: Option<u16>,
    /// Limits of the HTTP server.
    pub http: HttpSettings,
    /// The model, and how it runs.
    pub captioner: CaptionerSettings,
    /// Other models, and routes.
    pub routing: RoutingSettings,
    /// Where captions are kept; `None` for nowhere.
    pub library: Option<String>,
    /// Whether photos whose captions are kept are embedded.
    pub library_embeddings: bool,
    /// Where answers are shared with other servers; `None` for nowhere.
    pub shared_cache: Option<SharedSettings>,
    /// What is logged, and how.
    pub log: LogSettings,
    /// Where traces are sent.
    pub traces: TraceSettings,
}

impl Settings {
    /// Reads every setting.
    ///
    /// # Errors
    /// [`Config`](cutline_error::ErrorKind::Config): one sentence that names the setting and says
    /// what to give instead.
    pub fn new(values: &Values) -> Result<Self> {
        let (host, port) = listen_address(values)?;
        Ok(Self {
            host,
            port,
            grpc_port: grpc_port(values)?,
            http: HttpSettings::new(values)?,
            captioner: CaptionerSettings {
                appearance: library_appearance(values)?,
                ..captioner_settings(values)?
            },
            routing: routing::settings(values)?,
            library: library_address(values)?,
            library_embeddings: library_embeddings(values)?,
            shared_cache: shared_cache(values)?,
            log: LogSettings::new(values)?,
            traces: TraceSettings::new(values)?,
        })
    }
}

impl Default for Settings {
    /// The declared defaults, whatever the environment says.
    fn default() -> Self {
        defaults(Self::new)
    }
}

/// A test parses the default of every setting.
fn defaults<T>(read: impl Fn(&Values) -> Result<T>) -> T {
    read(&Values::default()).unwrap_or_else(|error| unreachable!("a default is wrong: {error}"))
}

/// Where a server listens: `HOST` and `PORT`.
///
/// # Errors
/// As [`Settings::new`].
pub fn listen_address(values: &Values) -> Result<(String, u16)> {
    let ServerOptions { host, port, .. } = values.read()?;
    Ok((host, port))
}

/// Where captions are kept: `LIBRARY`.
///
/// # Errors
/// As [`Settings::new`].
pub fn library_address(values: &Values) -> Result<Option<String>> {
    Ok(values.read::<LibraryOptions>()?.library)
}

/// What is found out about photos for the library, if there is one.
///
/// # Errors
/// As [`Settings::new`].
pub fn library_appearance(values: &Values) -> Result<Option<AppearanceOptions>> {
    let LibraryOptions { library, library_thumbnails: thumbnails, .. } = values.read()?;
    Ok(library.map(|_| AppearanceOptions { thumbnails }))
}

fn library_embeddings(values: &Values) -> Result<bool> {
    let LibraryOptions { library, library_embeddings, .. } = values.read()?;
    if library_embeddings && library.is_none() {
        return Err(values.unusable("LIBRARY_EMBEDDINGS", "it needs LIBRARY; set that too"));
    }
    Ok(library_embeddings)
}

/// A task of Hugging Face's inference API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HfTask {
    /// A caption.
    ImageToText,
    /// Tags.
    ImageClassification,
}

fn grpc_port(values: &Values) -> Result<Option<u16>> {
    let port = values.read::<ServerOptions>()?.grpc_port;
    if port.is_some() && !cfg!(feature = "grpc") {
        return Err(values.unusable(
            "GRPC_PORT",
            "this binary is built without the feature grpc; build it with --features grpc, or leave \
             the setting out",
        ));
    }
    Ok(port)
}

fn shared_cache(values: &Values) -> Result<Option<SharedSettings>> {
    let SharedCacheOptions { cache_url, cache_secret, cache_timeout, cache_scope } =
        values.read()?;
    let Some(address) = cache_url else { return Ok(None) };
    if !cfg!(feature = "redis") {
        return Err(values.unusable(
            "CACHE_URL",
            "this binary is built without the feature redis; build it with --features redis, or \
             leave the setting out",
        ));
    }
    let secret = cache_secret
        .ok_or_else(|| values.unusable("CACHE_URL", "it needs CACHE_SECRET; set that too"))?;
    let time_to_live = values.read::<CacheOptions>()?.cache_ttl;
    let timeout = cache_timeout;
    Ok(Some(SharedSettings { address, secret, timeout, time_to_live, scope: cache_scope }))
}

/// Limits of the HTTP server.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// Largest image in bytes.
    pub max_image_bytes: usize,
    /// Largest image in pixels.
    pub max_image_pixels: u64,
    /// Images processed at the same time before the model is loaded.
    pub max_workers: usize,
    /// Bytes of images held in memory before the model is loaded.
    pub max_inflight_bytes: u64,
    /// Bytes that decoding may take before the model is loaded.
    pub max_decode_bytes: u64,
    /// Time limit for receiving a request, and again for computing its answer.
    pub request_timeout: Duration,
    /// How long requests are still accepted after the signal to stop.
    pub shutdown_delay: Duration,
    /// How long accepted requests may still take after that.
    pub shutdown_grace: Duration,
    /// Images in one batch request.
    pub max_images_per_request: usize,
    /// What the bytes of an image mean to clients of Hugging Face.
    pub hf_task: HfTask,
    /// Other names of the model for clients of other programs; `*` for any.
    pub model_aliases: Vec<String>,
    /// Open connections.
    pub max_connections: usize,
    /// How long a connection may be without a request, whose headers count as well; and how long a
    /// client may read nothing of an answer.
    pub idle_timeout: Duration,
    /// `HOST`, if only this machine can reach the server there.
    pub loopback_host: Option<String>,
    /// Who may use the server, from which origins, and how often.
    pub protection: ProtectionSettings,
    /// Where images may be fetched from.
    pub fetch: FetchSettings,
    /// The tags that photos may get, unless a request says so; `None` for those of everyday photos.
    pub tag_vocabulary: Option<Source>,
    /// The weights of the strategy `hybrid`; `None` for those that are shipped.
    pub tag_weights: Option<Weights>,
}

impl HttpSettings {
    fn new(values: &Values) -> Result<Self> {
        let server: ServerOptions = values.read()?;
        let images: ImageOptions = values.read()?;
        Ok(Self {
            max_image_bytes: images.max_image_size,
            max_image_pixels: images.max_image_pixels,
            max_workers: images.max_workers.unwrap_or(WORKERS_ON_CPU),
            max_inflight_bytes: values.read::<QueueOptions>()?.max_inflight_bytes,
            max_decode_bytes: max_decode_bytes(&images),
            request_timeout: server.request_timeout,
            shutdown_delay: server.shutdown_delay,
            shutdown_grace: server.shutdown_grace,
            max_images_per_request: server.max_images_per_request,
            hf_task: server.hf_task,
            model_aliases: server.model_aliases.map(|names| names.0).unwrap_or_default(),
            max_connections: server.max_connections,
            idle_timeout: Duration::from_secs(60),
            loopback_host: Some(server.host).filter(|host| is_loopback(host)),
            protection: protection_settings(values)?,
            fetch: fetch_settings(values)?,
            tag_vocabulary: tag_vocabulary(values)?,
            tag_weights: tag_weights(values)?,
        })
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        defaults(Self::new)
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>().map(|address| address.to_canonical().is_loopback());
    address.unwrap_or_else(|_| host.eq_ignore_ascii_case("localhost"))
}

fn protection_settings(values: &Values) -> Result<ProtectionSettings> {
    let options: ProtectionOptions = values.read()?;
    let burst = options.rate_limit_burst.and_then(NonZeroU32::new);
    let rate = match (NonZeroU32::new(options.rate_limit), burst) {
        (Some(per_minute), burst) => {
            Some(RateLimit { per_minute, burst: burst.unwrap_or(per_minute) })
        }
        (None, None) => None,
        (None, Some(_)) => {
            return Err(values.unusable("RATE_LIMIT_BURST", "it needs RATE_LIMIT; set that too"));
        }
    };
    let keys = [options.api_keys, options.api_keys_file];
    Ok(ProtectionSettings {
        keys: keys.into_iter().flatten().fold(ApiKeys::default(), ApiKeys::with),
        public: options.public_endpoints,
        cors: options.cors_allow_origins.unwrap_or_default(),
        rate,
        proxies: options.trusted_proxy_count,
    })
}

/// Where images may be fetched from, for every program that takes their addresses.
///
/// # Errors
/// As [`Settings::new`].
pub fn fetch_settings(values: &Values) -> Result<FetchSettings> {
    let FetchOptions { fetch_urls, fetch_hosts, fetch_timeout } = values.read()?;
    let sources = match (fetch_urls, fetch_hosts) {
        (FetchUrls::List, Some(hosts)) => FetchSources::Listed(hosts),
        (FetchUrls::List, None) => {
            return Err(values.unusable("FETCH_URLS", "it needs FETCH_HOSTS; set that too"));
        }
        // Someone who lists hosts believes that only these are allowed.
        (_, Some(_)) => {
            return Err(values.unusable("FETCH_HOSTS", "it needs FETCH_URLS=list; set that too"));
        }
        (FetchUrls::Public, None) => FetchSources::Public,
        (FetchUrls::Off, None) => FetchSources::Off,
    };
    let max_bytes = values.read::<ImageOptions>()?.max_image_size;
    Ok(FetchSettings { sources, timeout: fetch_timeout, max_bytes })
}

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// The least severe level that is logged.
    pub level: Level,
    /// Readable text instead of JSON.
    pub human: bool,
}

impl LogSettings {
    /// `LOG_LEVEL` and `DEBUG`.
    ///
    /// # Errors
    /// As [`Settings::new`].
    pub fn new(values: &Values) -> Result<Self> {
        let LogOptions { log_level, debug, .. } = values.read()?;
        Ok(Self { level: log_level, human: debug })
    }

    /// For a command whose output is its result: only warnings, for people, unless `LOG_LEVEL` is
    /// set.
    ///
    /// # Errors
    /// As [`Settings::new`].
    pub fn for_command(values: &Values) -> Result<Self> {
        let Self { level, .. } = Self::new(values)?;
        Ok(Self {
            level: if values.is_set("LOG_LEVEL") { level } else { Level::WARN },
            human: true,
        })
    }
}

/// Where traces are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSettings {
    /// The address of a collector that takes OTLP over HTTP, without `/v1/traces`; `None` for no
    /// traces.
    pub endpoint: Option<String>,
    /// The name of this program in the traces.
    pub service_name: String,
}

impl TraceSettings {
    fn new(values: &Values) -> Result<Self> {
        let options: TraceOptions = values.read()?;
        if options.otel_exporter_otlp_endpoint.is_some() && !cfg!(feature = "otlp") {
            return Err(values.unusable(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "this binary is built without the feature otlp and cannot send traces; build it \
                 with --features otlp, or leave the setting out",
            ));
        }
        let endpoint = options.otel_exporter_otlp_endpoint;
        Ok(Self {
            endpoint: endpoint.map(|address| address.trim_end_matches('/').to_owned()),
            service_name: options.otel_service_name,
        })
    }
}

/// The model and the hub it may come from: `MODEL` and the settings of the hub.
///
/// # Errors
/// As [`Settings::new`].
pub fn model_source(values: &Values) -> Result<(ModelSource, HubOptions)> {
    let options: ModelOptions = values.read()?;
    let hub = HubOptions {
        endpoint: options.hf_endpoint,
        token: options.hf_token,
        cache_dir: match options.model_cache_dir {
            Some(folder) => folder,
            None => default_cache_dir(values)?,
        },
        offline: options.hf_hub_offline,
        ..HubOptions::default()
    };
    Ok((options.model.unwrap_or(ModelSource::Embedded), hub))
}

/// The settings of the model, for every command that runs one.
///
/// # Errors
/// As [`Settings::new`].
pub fn captioner_settings(values: &Values) -> Result<CaptionerSettings> {
    let (model, hub) = model_source(values)?;
    let options: ModelOptions = values.read()?;
    let images: ImageOptions = values.read()?;
    Ok(CaptionerSettings {
        model,
        hub,
        engine: EngineOptions {
            device: device(values, &options)?,
            precision: options.precision,
            kernels: options.cpu_kernels,
            gpu_kernels: options.gpu_kernels,
        },
        target_width: images.target_image_width,
        target_height: images.target_image_height,
        max_image_bytes: images.max_image_size,
        max_image_pixels: images.max_image_pixels,
        max_workers: images.max_workers,
        max_batch_size: options.max_batch_size,
        vision_order: VisionOrder::default(),
        queue_capacity: values.read::<QueueOptions>()?.queue_capacity,
        memory: memory_limits(values, &images)?,
        image_memory: None,
        decoders: None,
        max_weight_bytes: None,
        fallback_text: images.fallback_text,
        appearance: None,
        metrics: Metrics::default(),
    })
}

fn memory_limits(values: &Values, images: &ImageOptions) -> Result<MemoryLimits> {
    let cache: CacheOptions = values.read()?;
    let QueueOptions { max_inflight_bytes, .. } = values.read()?;
    // Base64 in JSON is a third longer than the image and counts three times, with the fields around it.
    let largest = images.max_image_size as u64 * 5;
    if max_inflight_bytes < largest {
        let remedy = format!(
            "give at least {largest}, five times MAX_IMAGE_SIZE, or the largest images would \
             never be accepted"
        );
        return Err(values.unusable("MAX_INFLIGHT_BYTES", &remedy));
    }
    Ok(MemoryLimits {
        cache_max_bytes: cache.cache_max_bytes,
        cache_ttl: cache.cache_ttl,
        vision_cache_bytes: cache.vision_cache_bytes,
        max_inflight_bytes,
        max_decode_bytes: max_decode_bytes(images),
    })
}

fn max_decode_bytes(images: &ImageOptions) -> u64 {
    images.max_decode_bytes.unwrap_or_else(|| decode_bytes(images.max_image_pixels))
}

/// `USE_GPU` says whether to use a GPU, `DEVICE` which one. If a GPU is asked for and the engine cannot
/// open it, the start fails.
fn device(values: &Values, options: &ModelOptions) -> Result<DeviceChoice> {
    let chosen = match (options.use_gpu, options.device.unwrap_or_default()) {
        (Some(true), DeviceChoice::Cpu) | (Some(false), DeviceChoice::Cuda(_)) => {
            let remedy = "it contradicts USE_GPU; leave one of them out";
            return Err(values.unusable("DEVICE", remedy));
        }
        (Some(true), DeviceChoice::Auto) => DeviceChoice::Cuda(0),
        (Some(false), _) => DeviceChoice::Cpu,
        (_, device) => device,
    };
    if matches!(chosen, DeviceChoice::Cuda(_)) && !cfg!(feature = "cuda") {
        let name = if options.use_gpu == Some(true) { "USE_GPU" } else { "DEVICE" };
        return Err(values.unusable(
            name,
            "this binary is built without the feature cuda; build it with --features cuda, or \
             leave the setting out to use the CPU",
        ));
    }
    Ok(chosen)
}

/// The folder in which `huggingface_hub` caches its models, so that both share the files.
fn default_cache_dir(values: &Values) -> Result<PathBuf> {
    for (name, subfolder) in [
        ("HF_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
        ("USERPROFILE", ".cache/huggingface/hub"),
    ] {
        if let Some(folder) = values.text(name)? {
            return Ok(match subfolder {
                "" => folder.into(),
                subfolder => PathBuf::from(folder).join(subfolder),
            });
        }
    }
    Ok(PathBuf::from("models"))
}

//! Every setting, once: its name, its default, the values it accepts and its meaning.
//!
//! The field `max_workers` is the variable `MAX_WORKERS` in the environment and in `.env`, and the
//! option `--max-workers`. The doc comment of the field is its text in `--help`, in `.env.example` and
//! in `docs/configuration.md`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Command};
use tracing::Level;

use super::HfTask;
use super::parse::{
    FetchUrls, Models, Names, address, cache_scope, choice, cpu_kernels, fetch_urls, flag,
    gpu_kernels, hf_task, log_level, models, names, number, number_or_auto, precision,
    redis_address, seconds, secret, use_gpu,
};
use super::protection::{self, ApiKeys, CorsOrigins, PublicEndpoints};
use crate::cache::CacheScope;
use crate::engine::source::ModelSource;
use crate::engine::{DeviceChoice, GpuKernels, KernelChoice, Precision};
use crate::fetch::FetchHosts;

/// Settings that belong together, under one heading of `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The HTTP server, and the queue in front of the model.
    Server,
    /// Who may use the server.
    Protection,
    /// The model and the device it runs on.
    Model,
    /// Other models, and routes over them.
    Routing,
    /// Limits of images, and their preparation.
    Images,
    /// Images by URL.
    Fetch,
    /// Where captions are kept.
    Library,
    /// Allowed tags.
    Tags,
    /// What is cached.
    Cache,
    /// A cache that several servers share.
    SharedCache,
    /// Logs and traces.
    Logs,
}

impl Group {
    /// All groups, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::Server,
        Self::Protection,
        Self::Model,
        Self::Routing,
        Self::Images,
        Self::Fetch,
        Self::Library,
        Self::Tags,
        Self::Cache,
        Self::SharedCache,
        Self::Logs,
    ];

    /// Adds the settings of this group to `command` as options.
    pub(super) fn augment(self, command: Command) -> Command {
        match self {
            Self::Server => QueueOptions::augment_args(ServerOptions::augment_args(command)),
            Self::Protection => ProtectionOptions::augment_args(command),
            Self::Model => ModelOptions::augment_args(command),
            Self::Routing => RoutingOptions::augment_args(command),
            Self::Images => ImageOptions::augment_args(command),
            Self::Fetch => FetchOptions::augment_args(command),
            Self::Library => LibraryOptions::augment_args(command),
            Self::Tags => TagOptions::augment_args(command),
            Self::Cache => CacheOptions::augment_args(command),
            Self::SharedCache => SharedCacheOptions::augment_args(command),
            Self::Logs => TraceOptions::augment_args(LogOptions::augment_args(command)),
        }
    }
}

/// The most memory that a setting may ask for, a tebibyte: more is a typing error.
const MAX_MEMORY: u64 = 1 << 40;

/// A value that can be left to the program: `None` for `auto`.
///
/// Not called `Option`, which clap reads as "may be missing".
pub(super) type Auto<T> = Option<T>;

#[derive(Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerOptions {
    /// Address to listen on; 0.0.0.0 for all interfaces
    #[arg(long, env, default_value = "127.0.0.1")]
    pub(super) host: String,
    /// Port to listen on; 0 for any free port
    #[arg(long, env, default_value = "8000", value_parser = number::<u16>(0, u16::MAX))]
    pub(super) port: u16,
    /// Port of KServe's protocol over gRPC, usually 8001; needs the feature grpc; if unset, there is none
    #[arg(long, env, value_parser = number::<u16>(0, u16::MAX))]
    pub(super) grpc_port: Option<u16>,
    /// Seconds allowed for receiving a request, and as many again for computing its answer
    #[arg(long, env, default_value = "30", value_parser = seconds(0.001))]
    pub(super) request_timeout: Duration,
    /// Seconds after SIGTERM in which the server is not ready but still serves, so that a load balancer
    /// can send new requests elsewhere
    #[arg(long, env, default_value = "5", value_parser = seconds(0.0))]
    pub(super) shutdown_delay: Duration,
    /// Seconds that accepted requests may still take after that
    #[arg(long, env, default_value = "30", value_parser = seconds(0.0))]
    pub(super) shutdown_grace: Duration,
    /// Open connections; beyond this, the longest idle one is closed to admit a new one
    #[arg(long, env, default_value = "1024", value_parser = number::<usize>(1, 1 << 20))]
    pub(super) max_connections: usize,
    /// Images in one batch request, or in progress on one WebSocket; a batch never has more than QUEUE_CAPACITY
    #[arg(long, env, default_value = "32", value_parser = number::<usize>(1, 1 << 16))]
    pub(super) max_images_per_request: usize,
    /// Comma-separated names under which clients of other programs may ask for the model, such as
    /// gpt-4o-mini, or * for any; if unset, its own name only
    #[arg(long, env, value_parser = names)]
    pub(super) model_aliases: Option<Names>,
    /// What POST / with the bytes of an image means to clients of Hugging Face: image-to-text or
    /// image-classification
    #[arg(long, env, default_value = "image-to-text", value_parser = choice(hf_task()))]
    pub(super) hf_task: HfTask,
}

// The settings of the server that `cutline caption` obeys as well. Not a doc comment: clap would take
// it for the description of the command.
#[derive(Args)]
#[command(next_help_heading = "Server")]
pub(super) struct QueueOptions {
    /// Images that may wait for the model; beyond this, the answer is 429; auto is 64 on a CPU, and at
    /// least eight batches on a GPU
    #[arg(long, env, default_value = "auto", value_parser = number_or_auto::<usize>(1, 1 << 20))]
    pub(super) queue_capacity: Auto<usize>,
    /// Bytes of images that are being received or are waiting; beyond this, the answer is 429
    #[arg(long, env, default_value = "268435456", value_parser = number::<u64>(1 << 20, MAX_MEMORY))]
    pub(super) max_inflight_bytes: u64,
}

#[derive(Args)]
#[command(next_help_heading = "Protection")]
pub(super) struct ProtectionOptions {
    /// Comma-separated keys, one of which each request must send; if unset, no key is needed
    #[arg(long, env, hide_env_values = true, value_parser = protection::api_keys)]
    pub(super) api_keys: Option<ApiKeys>,
    /// File with more such keys, one per line; lines that start with # are comments
    #[arg(long, env, value_parser = protection::api_keys_file)]
    pub(super) api_keys_file: Option<ApiKeys>,
    /// Endpoints that need no key: some of health, metrics, docs, separated by commas; or none
    #[arg(long, env, default_value = "health,docs", value_parser = protection::public_endpoints)]
    pub(super) public_endpoints: PublicEndpoints,
    /// Comma-separated origins whose pages may use the server, * for all; if unset, its own page only
    #[arg(long, env, value_parser = protection::cors_origins)]
    pub(super) cors_allow_origins: Option<CorsOrigins>,
    /// Requests per minute for each key, or for each address if no keys are set; each server process
    /// counts for itself; 0 for no limit
    #[arg(long, env, default_value = "0", value_parser = number::<u32>(0, protection::MAX_RATE))]
    pub(super) rate_limit: u32,
    /// Requests that a client may send at once after a pause; if unset, as many as RATE_LIMIT
    #[arg(long, env, value_parser = number::<u32>(1, protection::MAX_RATE))]
    pub(super) rate_limit_burst: Option<u32>,
    /// Reverse proxies in front of the server whose X-Forwarded-For header is trusted
    #[arg(long, env, default_value = "0", value_parser = number::<usize>(0, 16))]
    pub(super) trusted_proxy_count: usize,
}

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelOptions {
    /// A folder, a .gguf file, or organisation/name[@revision] on the hub; if unset, the model in the
    /// binary
    #[arg(long, env)]
    pub(super) model: Option<ModelSource>,
    /// Folder for models from the hub; if unset, the one that huggingface_hub uses: HF_HUB_CACHE,
    /// HF_HOME/hub or ~/.cache/huggingface/hub
    #[arg(long, env)]
    pub(super) model_cache_dir: Option<PathBuf>,
    /// Whether to use a GPU: auto uses one if it works, true requires one, false uses none; needs the
    /// feature cuda
    #[arg(long, env, default_value = "auto", value_parser = choice(use_gpu()))]
    pub(super) use_gpu: Auto<bool>,
    /// cpu, or a GPU by its number, such as cuda:1, which must work; if unset, USE_GPU decides
    #[arg(long, env)]
    pub(super) device: Option<DeviceChoice>,
    /// Number format of the model: auto, f32, f16, bf16 or int8
    #[arg(long, env, default_value = "auto", value_parser = choice(precision()))]
    pub(super) precision: Precision,
    /// Instruction set on a CPU: auto, portable, avx2, avx2-vnni, avx512, avx512-int8, avx512-vnni, amx, candle
    #[arg(long, env, default_value = "auto", value_parser = choice(cpu_kernels()))]
    pub(super) cpu_kernels: KernelChoice,
    /// What computes on a GPU: auto, cutline or candle; auto is cutline, and candle for what fails a check
    /// at the start
    #[arg(long, env, default_value = "auto", value_parser = choice(gpu_kernels()))]
    pub(super) gpu_kernels: GpuKernels,
    /// Captions or beams decoded together; auto is 8 on a CPU, and measured at the start on a GPU
    #[arg(long, env, default_value = "auto", value_parser = number_or_auto::<usize>(1, 1024))]
    pub(super) max_batch_size: Auto<usize>,
    /// Address of the hub
    #[arg(long, env, default_value = "https://huggingface.co", value_parser = address)]
    pub(super) hf_endpoint: String,
    /// Access token for the hub; if unset, only public models can be fetched
    #[arg(long, env, hide_env_values = true)]
    pub(super) hf_token: Option<String>,
    /// Use only models that are in the cache
    #[arg(long, env, default_value = "false", value_parser = choice(flag()),
          action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub(super) hf_hub_offline: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Several models")]
pub(super) struct RoutingOptions {
    /// More models in this process, as name=MODEL separated by commas, such as
    /// base=Salesforce/blip-image-captioning-base; requests choose one by its name
    #[arg(long, env, value_parser = models)]
    pub(super) models: Option<Models>,
    /// Bytes that the weight files of all models may have together; if unset, there is no limit
    #[arg(long, env, value_parser = number::<u64>(0, MAX_MEMORY))]
    pub(super) max_model_bytes: Option<u64>,
    /// File with backends and routes; if unset, there are none, and no photo leaves this machine
    #[arg(long, env)]
    pub(super) routes_file: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "Images")]
pub(super) struct ImageOptions {
    /// Largest image in bytes
    // An image is held in memory, several at a time.
    #[arg(long, env, default_value = "10485760", value_parser = number::<usize>(1, 1 << 30))]
    pub(super) max_image_size: usize,
    /// Largest image in pixels, width × height
    #[arg(long, env, default_value = "100000000", value_parser = number::<u64>(1, u64::from(u32::MAX)))]
    pub(super) max_image_pixels: u64,
    /// Bytes of memory for decoding images, in which others wait for their turn; auto is 14 for each of
    /// MAX_IMAGE_PIXELS and 64 MiB, enough for any JPEG or PNG
    #[arg(long, env, default_value = "auto", value_parser = number_or_auto::<u64>(32 << 20, MAX_MEMORY))]
    pub(super) max_decode_bytes: Auto<u64>,
    /// Width in pixels to which images are resized for the model; if unset, the model's own
    #[arg(long, env, value_parser = number::<usize>(1, 4096))]
    pub(super) target_image_width: Option<usize>,
    /// Height in pixels to which images are resized for the model; if unset, the model's own
    #[arg(long, env, value_parser = number::<usize>(1, 4096))]
    pub(super) target_image_height: Option<usize>,
    /// Images decoded at the same time; auto is 2 if the model runs on the CPU, all cores with a GPU
    #[arg(long, env, default_value = "auto", value_parser = number_or_auto::<usize>(1, 1024))]
    pub(super) max_workers: Auto<usize>,
    /// Alternative text of a photo that cannot be described
    #[arg(long, env, default_value = "Image description not available")]
    pub(super) fallback_text: String,
}

#[derive(Args)]
#[command(next_help_heading = "Images by URL")]
pub(super) struct FetchOptions {
    /// Where images may be fetched from: off for nowhere, public for the public internet, list for
    /// FETCH_HOSTS
    #[arg(long, env, default_value = "off", value_parser = choice(fetch_urls()))]
    pub(super) fetch_urls: FetchUrls,
    /// Comma-separated hosts for FETCH_URLS=list, which may be private ones: names, *.name for all below a
    /// name, IP addresses; each with a port if it is not 80 or 443
    #[arg(long, env)]
    pub(super) fetch_hosts: Option<FetchHosts>,
    /// Seconds that fetching one image may take
    #[arg(long, env, default_value = "10", value_parser = seconds(0.001))]
    pub(super) fetch_timeout: Duration,
}

#[derive(Args)]
#[command(next_help_heading = "Library")]
pub(super) struct LibraryOptions {
    /// Library in which captions are kept: sqlite:FILE or, with the feature postgres,
    /// postgres://USER:PASSWORD@HOST/DATABASE; if unset, they are not
    #[arg(long, env, hide_env_values = true)]
    pub(super) library: Option<String>,
    /// Whether the library keeps a small picture of each photo, about 9 KB, for the gallery
    #[arg(long, env, default_value = "true", value_parser = choice(flag()),
          action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub(super) library_thumbnails: bool,
    /// Whether photos whose captions are kept are also embedded by a model of MODELS that can, so that
    /// /library/similar finds them by a text
    #[arg(long, env, default_value = "false", value_parser = choice(flag()),
          action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub(super) library_embeddings: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Tags")]
pub(super) struct TagOptions {
    /// File with the tags that photos may get, JSON or lines of text, or library:NAME for a vocabulary of
    /// the library; if unset, tags for everyday photos
    #[arg(long, env)]
    pub(super) tag_vocabulary: Option<PathBuf>,
    /// File with the weights of the strategy hybrid, as cutline tags fit writes it; if unset, those that
    /// cutline has
    #[arg(long, env)]
    pub(super) tag_weights: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "Cache")]
pub(super) struct CacheOptions {
    /// Bytes of captions to cache; 0 to cache none
    #[arg(long, env, default_value = "67108864", value_parser = number::<u64>(0, MAX_MEMORY))]
    pub(super) cache_max_bytes: u64,
    /// Seconds that a caption or an encoded image stays in the cache
    #[arg(long, env, default_value = "3600", value_parser = seconds(0.001))]
    pub(super) cache_ttl: Duration,
    /// Bytes of encoded images to cache, for other prompts and samples; 0 to cache none
    #[arg(long, env, default_value = "134217728", value_parser = number::<u64>(0, MAX_MEMORY))]
    pub(super) vision_cache_bytes: u64,
}

// Apart from the other settings of caches, because only servers share answers.
#[derive(Args)]
#[command(next_help_heading = "Shared cache")]
pub(super) struct SharedCacheOptions {
    /// Redis in which servers share captions, redis://USER:PASSWORD@HOST:PORT or rediss:// for TLS; needs the
    /// feature redis; if unset, they are not shared
    #[arg(long, env, hide_env_values = true, value_parser = redis_address)]
    pub(super) cache_url: Option<String>,
    /// Secret that protects the captions in CACHE_URL, at least 16 characters, the same on all servers
    #[arg(long, env, hide_env_values = true, value_parser = secret)]
    pub(super) cache_secret: Option<String>,
    /// Seconds that one call of CACHE_URL may take
    #[arg(long, env, default_value = "0.025", value_parser = seconds(0.001))]
    pub(super) cache_timeout: Duration,
    /// Which servers share captions: exact for those with the same kernels and kind of device, model for all
    /// with the same model and precision
    #[arg(long, env, default_value = "exact", value_parser = choice(cache_scope()))]
    pub(super) cache_scope: CacheScope,
}

#[derive(Args)]
#[command(next_help_heading = "Logs and traces")]
pub(super) struct LogOptions {
    /// Least severe level to log: error, warn, info, debug or trace
    #[arg(long, env, default_value = "info", value_parser = choice(log_level()))]
    pub(super) log_level: Level,
    /// Log readable text instead of JSON
    #[arg(long, env, default_value = "false", value_parser = choice(flag()),
          action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub(super) debug: bool,
}

// Apart from the other settings of logs, because only servers send traces.
#[derive(Args)]
#[command(next_help_heading = "Logs and traces")]
pub(super) struct TraceOptions {
    /// Collector of traces (OTLP over HTTP), such as http://localhost:4318; needs the feature otlp; if
    /// unset, no traces are sent
    #[arg(long, env, value_parser = address)]
    pub(super) otel_exporter_otlp_endpoint: Option<String>,
    /// Name of this server in traces
    #[arg(long, env, default_value = "cutline")]
    pub(super) otel_service_name: String,
}

//! Command line, environment and `.env` to validated [`Settings`]; the only reader of the
//! environment.
//!
//! - `table` lists every setting once: its name, its default and what it means. The command line's
//!   options, `--help` and `.env.example` are made from it;
//! - `values` finds the text of a setting: the command line wins over the environment, which wins
//!   over `.env`; an empty text is no text;
//! - this file turns texts into values and says what is wrong with those that cannot be used.

mod parse;
mod protection;
mod table;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use self::parse::Reader;
pub use self::protection::{ApiKeys, CorsOrigins, ProtectionSettings, PublicEndpoints, RateLimit};
pub use self::table::{Group, SETTINGS, Setting, env_example};
pub use self::values::Values;
use crate::captioner::{CaptionerSettings, MemoryLimits, WORKERS_ON_CPU};
use crate::engine::source::ModelSource;
use crate::engine::{DeviceChoice, EngineOptions, HubOptions, KernelChoice, Precision};
use crate::metrics::Metrics;
use crate::scheduler::VisionOrder;
use cutline_error::Result;

/// Everything that `cutline serve` needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address to listen on; a name or a number.
    pub host: String,
    /// Port to listen on; 0 for any that is free.
    pub port: u16,
    /// Limits of the HTTP server.
    pub http: HttpSettings,
    /// The model and how it is run.
    pub captioner: CaptionerSettings,
    /// What is logged, and how.
    pub log: LogSettings,
    /// Where traces go.
    pub traces: TraceSettings,
}

impl Settings {
    /// Reads every setting.
    ///
    /// # Errors
    /// [`Config`](cutline_error::ErrorKind::Config): one sentence that names the setting and says
    /// what it must be.
    pub fn new(values: &Values) -> Result<Self> {
        let read = Reader::new(values);
        Ok(Self {
            host: read.required("HOST")?,
            port: read.number("PORT", 0, u16::MAX)?,
            http: HttpSettings {
                max_image_bytes: max_image_bytes(&read)?,
                max_image_pixels: max_image_pixels(&read)?,
                max_workers: max_workers(&read)?.unwrap_or(WORKERS_ON_CPU),
                max_inflight_bytes: max_inflight_bytes(&read)?,
                request_timeout: read.seconds("REQUEST_TIMEOUT", 0.001)?,
                shutdown_grace: read.seconds("SHUTDOWN_GRACE", 0.0)?,
                max_images_per_request: read.number("MAX_IMAGES_PER_REQUEST", 1, 1 << 16)?,
                max_connections: read.number("MAX_CONNECTIONS", 1, 1 << 20)?,
                protection: protection::protection(&read)?,
                ..HttpSettings::default()
            },
            captioner: captioner_settings(values)?,
            log: LogSettings::new(values)?,
            traces: trace_settings(&read)?,
        })
    }
}

/// Limits of the HTTP server.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// Largest image in bytes.
    pub max_image_bytes: usize,
    /// Largest image in pixels.
    pub max_image_pixels: u64,
    /// Images that are worked on at a time before the model is there.
    pub max_workers: usize,
    /// Bytes of images that are held before the model is there.
    pub max_inflight_bytes: u64,
    /// How long a body may take to arrive, and after that a caption to be made.
    pub request_timeout: Duration,
    /// How long accepted requests may go on after the signal to stop.
    pub shutdown_grace: Duration,
    /// Images that one batch may bring.
    pub max_images_per_request: usize,
    /// Connections that are open at a time.
    pub max_connections: usize,
    /// How long a connection may be without a request, its headers included; and how long a client
    /// may take none of an answer.
    pub idle_timeout: Duration,
    /// Who may use the server, from which sites, and how often.
    pub protection: ProtectionSettings,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            max_image_bytes: 10 << 20,
            max_image_pixels: 100_000_000,
            max_workers: WORKERS_ON_CPU,
            max_inflight_bytes: MemoryLimits::default().max_inflight_bytes,
            request_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(30),
            max_images_per_request: 32,
            max_connections: 1024,
            idle_timeout: Duration::from_secs(60),
            protection: ProtectionSettings::default(),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// The least severe level that is written.
    pub level: Level,
    /// Lines for people instead of JSON.
    pub human: bool,
}

impl LogSettings {
    /// `LOG_LEVEL` and `DEBUG`.
    ///
    /// # Errors
    /// As [`Settings::new`].
    pub fn new(values: &Values) -> Result<Self> {
        let read = Reader::new(values);
        Ok(Self { level: read.choice("LOG_LEVEL", &LEVELS)?, human: read.flag("DEBUG")? })
    }

    /// For a command of which the result, not the running, is of interest: warnings, for people,
    /// unless `LOG_LEVEL` asks for something.
    ///
    /// # Errors
    /// As [`Settings::new`].
    pub fn for_command(values: &Values) -> Result<Self> {
        let asked = Self::new(values)?;
        let level = if values.is_set("LOG_LEVEL")? { asked.level } else { Level::Warn };
        Ok(Self { level, human: true })
    }
}

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSettings {
    /// The address of a collector that takes OTLP over HTTP, without `/v1/traces`; `None` for no
    /// traces.
    pub endpoint: Option<String>,
    /// What the traces call this program.
    pub service_name: String,
}

fn trace_settings(read: &Reader<'_>) -> Result<TraceSettings> {
    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let endpoint = match read.text(ENDPOINT)? {
        Some(_) if !cfg!(feature = "otlp") => {
            return Err(read.unusable(
                ENDPOINT,
                "this binary is built without the otlp feature and sends no traces; build it with \
                 --features otlp, or leave it out",
            ));
        }
        Some(_) => Some(read.address(ENDPOINT)?.trim_end_matches('/').to_owned()),
        None => None,
    };
    Ok(TraceSettings { endpoint, service_name: read.required("OTEL_SERVICE_NAME")? })
}

/// How severe a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Defects and lost work.
    Error,
    /// Refused and slow work.
    Warn,
    /// One line a request.
    Info,
    /// For developers.
    Debug,
    /// For developers who are desperate.
    Trace,
}

/// The names of the levels, and those that Python gives them.
const LEVELS: [(&str, Level); 7] = [
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
    ("warning", Level::Warn),
    ("critical", Level::Error),
];

/// The settings of the model, for every command that loads one.
///
/// # Errors
/// As [`Settings::new`].
pub fn captioner_settings(values: &Values) -> Result<CaptionerSettings> {
    let read = Reader::new(values);
    Ok(CaptionerSettings {
        model: read.optional::<ModelSource>("MODEL")?.unwrap_or(ModelSource::Embedded),
        hub: HubOptions {
            endpoint: read.address("HF_ENDPOINT")?,
            token: read.text("HF_TOKEN")?,
            cache_dir: cache_dir(values)?,
            offline: read.flag("HF_HUB_OFFLINE")?,
            ..HubOptions::default()
        },
        engine: EngineOptions {
            device: device(&read)?,
            precision: precision(&read)?,
            kernels: kernels(&read)?,
        },
        target_width: read.optional_number("TARGET_IMAGE_WIDTH", 1, 4096)?,
        target_height: read.optional_number("TARGET_IMAGE_HEIGHT", 1, 4096)?,
        max_image_bytes: max_image_bytes(&read)?,
        max_image_pixels: max_image_pixels(&read)?,
        max_workers: max_workers(&read)?,
        max_batch_size: read.number_or_auto("MAX_BATCH_SIZE", 1, 1024)?,
        vision_order: VisionOrder::default(),
        queue_capacity: read.number("QUEUE_CAPACITY", 1, 1 << 20)?,
        memory: memory_limits(&read)?,
        fallback_text: read.required("FALLBACK_TEXT")?,
        metrics: Metrics::default(),
    })
}

/// More memory than this, a tebibyte, is a slip of the keyboard.
const MAX_MEMORY: u64 = 1 << 40;

fn memory_limits(read: &Reader<'_>) -> Result<MemoryLimits> {
    let limits = MemoryLimits {
        cache_max_bytes: read.number("CACHE_MAX_BYTES", 0, MAX_MEMORY)?,
        cache_ttl: read.seconds("CACHE_TTL", 0.001)?,
        vision_cache_bytes: read.number("VISION_CACHE_BYTES", 0, MAX_MEMORY)?,
        max_inflight_bytes: max_inflight_bytes(read)?,
    };
    // Base64 in JSON counts twice, and is a third longer than the image.
    let largest = max_image_bytes(read)? as u64 * 4;
    if limits.max_inflight_bytes < largest {
        let remedy = format!(
            "give at least {largest}, four times MAX_IMAGE_SIZE, or the largest images would \
             never be accepted"
        );
        return Err(read.unusable("MAX_INFLIGHT_BYTES", &remedy));
    }
    Ok(limits)
}

fn max_inflight_bytes(read: &Reader<'_>) -> Result<u64> {
    read.number("MAX_INFLIGHT_BYTES", 1 << 20, MAX_MEMORY)
}

/// At most 1 GiB: an image is held in memory, several at a time.
fn max_image_bytes(read: &Reader<'_>) -> Result<usize> {
    read.number("MAX_IMAGE_SIZE", 1, 1 << 30)
}

fn max_image_pixels(read: &Reader<'_>) -> Result<u64> {
    read.number("MAX_IMAGE_PIXELS", 1, u64::from(u32::MAX))
}

/// `None` for what suits the device.
fn max_workers(read: &Reader<'_>) -> Result<Option<usize>> {
    read.number_or_auto("MAX_WORKERS", 1, 1024)
}

/// `USE_GPU` says whether, `DEVICE` which one. A GPU that is named is meant, so without it the start
/// fails; that it exists is the engine's to find out.
fn device(read: &Reader<'_>) -> Result<DeviceChoice> {
    let wanted = [
        ("auto", None),
        ("true", Some(true)),
        ("1", Some(true)),
        ("false", Some(false)),
        ("0", Some(false)),
    ];
    let use_gpu = read.choice("USE_GPU", &wanted)?;
    let device: DeviceChoice = read.optional("DEVICE")?.unwrap_or_default();
    let chosen = match (use_gpu, device) {
        (Some(true), DeviceChoice::Cpu) | (Some(false), DeviceChoice::Cuda(_)) => {
            let remedy = "USE_GPU says the opposite; leave one of them out";
            return Err(read.unusable("DEVICE", remedy));
        }
        (Some(true), DeviceChoice::Auto) => DeviceChoice::Cuda(0),
        (Some(false), _) => DeviceChoice::Cpu,
        (_, device) => device,
    };
    if matches!(chosen, DeviceChoice::Cuda(_)) && !cfg!(feature = "cuda") {
        let name = if use_gpu == Some(true) { "USE_GPU" } else { "DEVICE" };
        return Err(read.unusable(
            name,
            "this binary is built without the cuda feature; build it with --features cuda, or \
             leave it out for the CPU",
        ));
    }
    Ok(chosen)
}

/// Which of them this build computes in is the engine's to say.
fn precision(read: &Reader<'_>) -> Result<Precision> {
    let all = [Precision::Auto, Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8];
    read.choice("PRECISION", &all.map(|precision| (precision.as_str(), precision)))
}

/// Which of them this CPU has is the engine's to say.
fn kernels(read: &Reader<'_>) -> Result<KernelChoice> {
    read.choice("CPU_KERNELS", &KernelChoice::all().collect::<Vec<_>>())
}

/// Where `huggingface_hub` keeps its models, so that both use the same files.
fn cache_dir(values: &Values) -> Result<PathBuf> {
    for (name, below) in [
        ("MODEL_CACHE_DIR", ""),
        ("HF_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
        ("USERPROFILE", ".cache/huggingface/hub"),
    ] {
        if let Some(value) = values.get(name)? {
            let folder = PathBuf::from(value.text);
            return Ok(if below.is_empty() { folder } else { folder.join(below) });
        }
    }
    Ok(PathBuf::from("models"))
}

//! Every setting, once.

use std::fmt::Write as _;

use self::Group::{Cache, Images, Logs, Model, Protection, Server};

/// What a setting is about, and so which commands have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The HTTP server.
    Server,
    /// Who may use the server.
    Protection,
    /// The model and the machine that it runs on.
    Model,
    /// Images and the work on them.
    Images,
    /// What is remembered.
    Cache,
    /// Logs and traces.
    Logs,
}

impl Group {
    /// The groups in the order in which they are listed.
    pub const ALL: [Self; 6] =
        [Self::Server, Self::Protection, Self::Model, Self::Images, Self::Cache, Self::Logs];

    /// The heading in `--help` and in `.env.example`.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::Protection => "Protection",
            Self::Model => "Model",
            Self::Images => "Images",
            Self::Cache => "Cache",
            Self::Logs => "Logs and traces",
        }
    }
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// What it is about.
    pub group: Group,
    /// The text that counts when there is none.
    pub default: Option<&'static str>,
    /// What it means, in a line.
    pub help: &'static str,
    /// What is put in where there is no default, in words.
    pub unset: &'static str,
    /// Whether its text must never be shown.
    pub secret: bool,
}

impl Setting {
    /// The option on the command line, without its dashes: `MAX_WORKERS` is `max-workers`.
    #[must_use]
    pub fn option(&self) -> String {
        self.name.to_lowercase().replace('_', "-")
    }
}

const fn setting(
    name: &'static str,
    group: Group,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { name, group, default: Some(default), help, unset: "", secret: false }
}

const fn unset(
    name: &'static str,
    group: Group,
    unset: &'static str,
    help: &'static str,
) -> Setting {
    Setting { name, group, default: None, help, unset, secret: false }
}

/// Every setting, group after group.
pub const SETTINGS: [Setting; 38] = [
    setting("HOST", Server, "127.0.0.1", "Address to listen on; 0.0.0.0 for every one"),
    setting("PORT", Server, "8000", "Port to listen on; 0 for any that is free"),
    setting(
        "REQUEST_TIMEOUT",
        Server,
        "30",
        "Seconds that an upload may take, and after it a caption",
    ),
    setting(
        "SHUTDOWN_GRACE",
        Server,
        "30",
        "Seconds that accepted requests get after the signal to stop",
    ),
    setting("QUEUE_CAPACITY", Server, "64", "Images that may wait for the model before 429"),
    setting(
        "MAX_IMAGES_PER_REQUEST",
        Server,
        "32",
        "Images of one batch; never more than QUEUE_CAPACITY",
    ),
    setting(
        "MAX_INFLIGHT_BYTES",
        Server,
        "268435456",
        "Bytes of images that are being received or wait, before 429",
    ),
    setting(
        "MAX_CONNECTIONS",
        Server,
        "1024",
        "Connections at a time; beyond it the one that is idle longest is closed for a new one",
    ),
    Setting {
        secret: true,
        ..unset(
            "API_KEYS",
            Protection,
            "everybody may ask",
            "Keys, separated by commas, of which a request must have one",
        )
    },
    unset(
        "API_KEYS_FILE",
        Protection,
        "no file",
        "File with such keys, one in a line; lines that begin with # are comments",
    ),
    setting(
        "PUBLIC_ENDPOINTS",
        Protection,
        "health,docs",
        "What needs no key: some of health, metrics, docs, or none",
    ),
    unset(
        "CORS_ALLOW_ORIGINS",
        Protection,
        "the server's own page only",
        "Origins, separated by commas, whose pages may use the server; * for all",
    ),
    setting(
        "RATE_LIMIT",
        Protection,
        "0",
        "Requests a minute for each key, or each address where there are no keys; 0 for any number",
    ),
    unset(
        "RATE_LIMIT_BURST",
        Protection,
        "RATE_LIMIT",
        "Requests that may come at once after a silence",
    ),
    setting(
        "TRUSTED_PROXY_COUNT",
        Protection,
        "0",
        "Proxies in front whose X-Forwarded-For names the client's address; 0 for none",
    ),
    unset(
        "MODEL",
        Model,
        "the model in the binary",
        "A folder, a .gguf file, or organisation/name[@revision] on the hub",
    ),
    unset(
        "MODEL_CACHE_DIR",
        Model,
        "where huggingface_hub keeps them: HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub",
        "Folder for models from the hub",
    ),
    setting(
        "USE_GPU",
        Model,
        "auto",
        "auto, true or false; true stops the start where no GPU can be used; needs the feature cuda",
    ),
    unset(
        "DEVICE",
        Model,
        "as USE_GPU says, and the first GPU",
        "cpu, or a GPU by its number: cuda:1; stops the start where that cannot be used",
    ),
    setting("PRECISION", Model, "auto", "auto, f32, f16, bf16 or int8"),
    setting(
        "CPU_KERNELS",
        Model,
        "auto",
        "Instructions on a CPU: auto, portable, avx2, avx2-vnni, avx512, avx512-vnni, amx, candle",
    ),
    setting(
        "MAX_BATCH_SIZE",
        Model,
        "auto",
        "Captions or beams that the model writes together; auto: 8 on a CPU, tried out on a GPU",
    ),
    setting("HF_ENDPOINT", Model, "https://huggingface.co", "Address of the hub"),
    Setting {
        secret: true,
        ..unset("HF_TOKEN", Model, "public models only", "Access token for the hub")
    },
    setting("HF_HUB_OFFLINE", Model, "false", "Use only models that are in the cache"),
    setting("MAX_IMAGE_SIZE", Images, "10485760", "Largest image in bytes"),
    setting("MAX_IMAGE_PIXELS", Images, "100000000", "Largest image in pixels, width × height"),
    unset(
        "TARGET_IMAGE_WIDTH",
        Images,
        "the model's own",
        "Width in pixels to which images are resized for the model",
    ),
    unset(
        "TARGET_IMAGE_HEIGHT",
        Images,
        "the model's own",
        "Height in pixels to which images are resized for the model",
    ),
    setting(
        "MAX_WORKERS",
        Images,
        "auto",
        "Images that are decoded at the same time; auto: 2 beside a model on the CPU, all cores \
         beside a GPU",
    ),
    setting(
        "FALLBACK_TEXT",
        Images,
        "Image description not available",
        "Alternative text of a photo that cannot be described",
    ),
    setting(
        "CACHE_MAX_BYTES",
        Cache,
        "67108864",
        "Bytes of answers that are remembered; 0 for none",
    ),
    setting("CACHE_TTL", Cache, "3600", "Seconds that an answer or an encoded image is remembered"),
    setting(
        "VISION_CACHE_BYTES",
        Cache,
        "134217728",
        "Bytes of encoded images that are remembered for other prompts and samples; 0 for none",
    ),
    setting("LOG_LEVEL", Logs, "info", "error, warn, info, debug or trace"),
    setting("DEBUG", Logs, "false", "true for log lines to be read by people instead of JSON"),
    unset(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        Logs,
        "no traces",
        "Collector of traces that takes OTLP over HTTP, http://localhost:4318 for instance; needs \
         the feature otlp",
    ),
    setting("OTEL_SERVICE_NAME", Logs, "cutline", "What traces call this server"),
];

/// The setting of this name.
pub(super) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The text of `.env.example`: every setting, commented out, with its default.
#[must_use]
pub fn env_example() -> String {
    let mut text = String::from(
        "# Settings of cutline. Copy this file to .env and uncomment what you want to change.\n\
         # The environment wins over .env, and options of the command line (--port for PORT) win\n\
         # over both. An empty value counts as not set.\n",
    );
    for group in Group::ALL {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n# {}\n", group.title());
        for setting in SETTINGS.iter().filter(|setting| setting.group == group) {
            let _ = match setting.default {
                // Words in a row need marks in such a file.
                Some(default) if default.contains(' ') => {
                    write!(text, "\n# {}\n#{}=\"{default}\"\n", setting.help, setting.name)
                }
                Some(default) => {
                    write!(text, "\n# {}\n#{}={default}\n", setting.help, setting.name)
                }
                None => write!(
                    text,
                    "\n# {} (not set: {})\n#{}=\n",
                    setting.help, setting.unset, setting.name
                ),
            };
        }
    }
    text
}

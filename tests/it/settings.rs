//! Settings: their sources, the values they accept, and the documents generated from them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cutline::captioner::{CaptionerSettings, MemoryLimits};
use cutline::config::{
    CorsOrigins, HttpSettings, Level, LogSettings, ProtectionSettings, PublicEndpoints, Settings,
    Values, env_example, markdown,
};
use cutline::engine::{DeviceChoice, GpuKernels, Precision};
use cutline::error::ErrorKind;
use cutline::fetch::{FetchSettings, FetchSources};

fn settings(pairs: &[(&str, &str)]) -> cutline::error::Result<Settings> {
    Settings::new(&Values::of_environment(pairs.iter().copied()))
}

/// Asserts that the generated parts of the file at `path` are up to date; `UPDATE_SETTINGS=1`
/// updates them.
#[track_caller]
fn assert_generated(path: &str, written: impl Fn(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let file = fs::read_to_string(&path).unwrap();
    let expected = written(&file);
    if std::env::var_os("UPDATE_SETTINGS").is_some() {
        fs::write(&path, &expected).unwrap();
    } else {
        assert!(
            file == expected,
            "{} is out of date; run UPDATE_SETTINGS=1 cargo test --test it settings",
            path.display()
        );
    }
}

#[test]
fn the_env_example_is_up_to_date() {
    assert_generated(".env.example", |_| env_example());
}

#[test]
fn the_tables_of_the_documentation_are_up_to_date() {
    const BEGIN: &str = "<!-- settings:begin -->\n";
    const END: &str = "<!-- settings:end -->";
    assert_generated("docs/configuration.md", |page| {
        let (before, rest) = page.split_once(BEGIN).expect("the page has a mark to begin at");
        let (_, after) = rest.split_once(END).expect("the page has a mark to end at");
        format!("{before}{BEGIN}{}{END}{after}", markdown())
    });
    let row = "| `PORT` | `--port` | `8000` | a whole number from 0 to 65535 | Port to listen on; \
               0 for any free port |";
    assert!(markdown().lines().any(|line| line == row), "{}", markdown());
}

#[test]
fn the_uncommented_env_example_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    let text: String = env_example()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(line) if line.starts_with(|c: char| c.is_ascii_uppercase()) => line,
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(text.contains("\nPORT=8000\n") && text.contains("\nHF_TOKEN=\n"), "{text}");
    fs::write(&path, text).unwrap();
    let from_file = Values::default().with_file(&path).unwrap();
    assert!(from_file.is_set("PORT") && !from_file.is_set("HF_TOKEN"));
    let from_file = Settings::new(&from_file).unwrap();
    assert_eq!(format!("{from_file:?}"), format!("{:?}", settings(&[]).unwrap()));
}

#[test]
fn defaults_are_those_of_the_contract() {
    let settings = settings(&[]).unwrap();
    assert_eq!(format!("{settings:?}"), format!("{:?}", Settings::default()));
    assert_eq!((settings.host.as_str(), settings.port), ("127.0.0.1", 8000));
    assert_eq!(settings.http.request_timeout, Duration::from_secs(30));
    assert_eq!(settings.http.max_image_bytes, 10_485_760);
    assert_eq!(settings.captioner.max_image_bytes, 10_485_760);
    assert_eq!(settings.captioner.max_image_pixels, 100_000_000);
    assert_eq!(settings.captioner.max_workers, None);
    assert_eq!(settings.http.max_workers, 2);
    assert_eq!(settings.captioner.max_batch_size, None);
    assert_eq!(settings.captioner.target_width, None);
    assert_eq!(settings.captioner.engine.device, DeviceChoice::Auto);
    assert_eq!(settings.captioner.engine.precision, Precision::Auto);
    assert!(!settings.captioner.hub.offline);
    assert_eq!(settings.captioner.memory, MemoryLimits::default());
    let library = CaptionerSettings::default();
    assert_eq!(settings.captioner.queue_capacity, library.queue_capacity);
    assert_eq!(settings.captioner.fallback_text, library.fallback_text);
    assert_eq!(settings.captioner.max_image_bytes, library.max_image_bytes);
    assert_eq!(settings.captioner.max_image_pixels, library.max_image_pixels);
    assert_eq!(settings.http, HttpSettings::default());
    assert_eq!(settings.log, LogSettings { level: Level::INFO, human: false });
    assert_eq!(settings.traces.endpoint, None);
}

#[test]
fn each_invalid_value_is_reported_with_its_name_and_a_remedy() {
    for (name, value) in [
        ("PORT", "abc"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "80.5"),
        ("MAX_BATCH_SIZE", "0"),
        ("MAX_BATCH_SIZE", "many"),
        ("MAX_IMAGE_SIZE", "10MB"),
        ("MAX_IMAGE_SIZE", "0"),
        ("MAX_IMAGE_PIXELS", "0"),
        ("MAX_WORKERS", "0"),
        ("QUEUE_CAPACITY", "0"),
        ("REQUEST_TIMEOUT", "0"),
        ("REQUEST_TIMEOUT", "soon"),
        ("REQUEST_TIMEOUT", "NaN"),
        ("REQUEST_TIMEOUT", "inf"),
        ("SHUTDOWN_DELAY", "soon"),
        ("SHUTDOWN_GRACE", "-1"),
        ("MAX_IMAGES_PER_REQUEST", "0"),
        ("MAX_CONNECTIONS", "0"),
        ("CACHE_MAX_BYTES", "64M"),
        ("CACHE_TTL", "0"),
        ("VISION_CACHE_BYTES", "-1"),
        ("CACHE_URL", "http://localhost"),
        ("CACHE_SECRET", "short"),
        ("CACHE_TIMEOUT", "0"),
        ("CACHE_SCOPE", "all"),
        ("MAX_INFLIGHT_BYTES", "0"),
        // Less than the largest image takes.
        ("MAX_INFLIGHT_BYTES", "20971520"),
        ("TARGET_IMAGE_WIDTH", "wide"),
        ("TARGET_IMAGE_HEIGHT", "0"),
        ("USE_GPU", "maybe"),
        ("DEVICE", "gpu"),
        ("DEVICE", "cuda:x"),
        ("MAX_WORKERS", "all"),
        ("PRECISION", "fp32"),
        ("GPU_KERNELS", "cuda"),
        ("LOG_LEVEL", "loud"),
        ("DEBUG", "a lot"),
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_HUB_OFFLINE", "perhaps"),
        ("MODEL", "no such model"),
        ("API_KEYS", ","),
        ("API_KEYS", "two words"),
        ("API_KEYS", "schlüssel"),
        ("API_KEYS_FILE", "/no/such/file"),
        ("PUBLIC_ENDPOINTS", "health,captions"),
        ("PUBLIC_ENDPOINTS", "none,health"),
        ("CORS_ALLOW_ORIGINS", "app.example.com"),
        ("CORS_ALLOW_ORIGINS", "https://app.example.com/"),
        ("CORS_ALLOW_ORIGINS", "*,https://app.example.com"),
        ("CORS_ALLOW_ORIGINS", ","),
        ("RATE_LIMIT", "-1"),
        ("RATE_LIMIT", "10/s"),
        ("RATE_LIMIT_BURST", "0"),
        // Without RATE_LIMIT.
        ("RATE_LIMIT_BURST", "5"),
        ("TRUSTED_PROXY_COUNT", "true"),
        ("FETCH_URLS", "on"),
        // Without FETCH_HOSTS.
        ("FETCH_URLS", "list"),
        // Without FETCH_URLS=list.
        ("FETCH_HOSTS", "photos.example.com"),
        ("FETCH_HOSTS", "https://photos.example.com/"),
        ("FETCH_HOSTS", ","),
        ("FETCH_TIMEOUT", "0"),
        ("MODELS", "Salesforce/blip-image-captioning-base"),
        ("MODELS", "a b=embedded"),
        ("MODELS", "a=embedded,a=embedded"),
        ("MODELS", "a=no such model"),
        ("MAX_MODEL_BYTES", "8G"),
        ("ROUTES_FILE", "/no/such/file"),
        ("TAG_VOCABULARY", "/no/such/file"),
        ("TAG_VOCABULARY", "library:"),
        ("TAG_WEIGHTS", "/no/such/file"),
        ("TAG_WEIGHTS", "Cargo.toml"),
        // Without LIBRARY.
        ("TAG_VOCABULARY", "library:shop"),
        ("LIBRARY_EMBEDDINGS", "true"),
    ] {
        let error = settings(&[(name, value)]).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Config, "{name}={value}: {error}");
        assert!(error.detail().contains(name), "{name}={value}: {error}");
        assert!(!error.detail().contains('\n'), "one sentence: {error}");
        assert!(error.detail().len() > name.len() + 20, "{error}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_is_refused_by_a_build_without_cuda() {
    for (name, value) in [("USE_GPU", "true"), ("DEVICE", "cuda:0"), ("DEVICE", "cuda")] {
        let error = settings(&[(name, value)]).unwrap_err();
        assert!(error.detail().contains(name) && error.detail().contains("--features cuda"));
    }
}

#[test]
fn use_gpu_and_device_are_combined() {
    let choice = |pairs: &[(&str, &str)]| settings(pairs).map(|s| s.captioner.engine.device);
    assert_eq!(choice(&[]).unwrap(), DeviceChoice::Auto);
    assert_eq!(choice(&[("DEVICE", "auto")]).unwrap(), DeviceChoice::Auto);
    assert_eq!(choice(&[("DEVICE", "cpu")]).unwrap(), DeviceChoice::Cpu);
    assert_eq!(choice(&[("USE_GPU", "0"), ("DEVICE", "cpu")]).unwrap(), DeviceChoice::Cpu);
    assert_eq!(choice(&[("USE_GPU", "false"), ("DEVICE", "auto")]).unwrap(), DeviceChoice::Cpu);
    for contradiction in
        [[("USE_GPU", "true"), ("DEVICE", "cpu")], [("USE_GPU", "false"), ("DEVICE", "cuda:0")]]
    {
        let error = choice(&contradiction).unwrap_err();
        assert!(error.detail().contains("DEVICE") && error.detail().contains("USE_GPU"), "{error}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_is_selected_by_its_number() {
    let choice = |pairs: &[(&str, &str)]| settings(pairs).unwrap().captioner.engine.device;
    assert_eq!(choice(&[("USE_GPU", "true")]), DeviceChoice::Cuda(0));
    assert_eq!(choice(&[("DEVICE", "cuda:1")]), DeviceChoice::Cuda(1));
    assert_eq!(choice(&[("USE_GPU", "true"), ("DEVICE", "cuda:2")]), DeviceChoice::Cuda(2));
}

#[test]
fn auto_leaves_a_number_to_the_program() {
    let numbers = |pairs: &[(&str, &str)]| {
        let captioner = settings(pairs).unwrap().captioner;
        (captioner.max_batch_size, captioner.max_workers)
    };
    assert_eq!(numbers(&[("MAX_BATCH_SIZE", "Auto"), ("MAX_WORKERS", "auto")]), (None, None));
    assert_eq!(numbers(&[("MAX_BATCH_SIZE", "64"), ("MAX_WORKERS", "16")]), (Some(64), Some(16)));
    for (name, value) in [("MAX_BATCH_SIZE", "many"), ("MAX_WORKERS", "0")] {
        let error = settings(&[(name, value)]).unwrap_err();
        assert!(error.detail().contains("give auto, or a whole number from 1 to"), "{error}");
    }
}

#[cfg(not(feature = "redis"))]
#[test]
fn a_shared_cache_is_refused_by_a_build_without_redis() {
    let error = settings(&[("CACHE_URL", "redis://localhost")]).unwrap_err();
    assert!(error.detail().contains("CACHE_URL") && error.detail().contains("--features redis"));
}

#[cfg(feature = "redis")]
#[test]
fn a_shared_cache_needs_a_secret_and_shows_none() {
    let shared = |pairs: &[(&str, &str)]| settings(pairs).map(|settings| settings.shared_cache);
    assert_eq!(shared(&[]).unwrap(), None);
    let error = shared(&[("CACHE_URL", "redis://u:hidden@localhost")]).unwrap_err();
    assert!(
        error.detail().contains("CACHE_SECRET") && !error.detail().contains("hidden"),
        "{error}"
    );
    let pairs = [("CACHE_URL", "redis://u:hidden@localhost"), ("CACHE_SECRET", "0123456789abcdef")];
    let set = shared(&pairs).unwrap().unwrap();
    let shown = format!("{set:?}");
    assert!(!shown.contains("hidden") && !shown.contains("0123"), "{shown}");
    assert_eq!(set.timeout, Duration::from_millis(25));
}

#[cfg(not(feature = "otlp"))]
#[test]
fn traces_are_refused_by_a_build_without_otlp() {
    let error = settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")]).unwrap_err();
    let detail = error.detail();
    assert!(detail.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && detail.contains("--features otlp"));
}

#[cfg(feature = "otlp")]
#[test]
fn the_collector_must_be_an_address() {
    let traces = |endpoint| settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]);
    let set = traces("http://localhost:4318/").unwrap().traces;
    assert_eq!(set.endpoint.as_deref(), Some("http://localhost:4318"));
    assert_eq!(set.service_name, "cutline");
    assert!(traces("localhost:4318").unwrap_err().detail().contains("http://"));
}

#[test]
fn case_spaces_and_underscores_do_not_matter() {
    let settings = settings(&[
        ("HOST", "  0.0.0.0 "),
        ("PORT", ""),
        ("MAX_IMAGE_SIZE", "20_000_000"),
        ("REQUEST_TIMEOUT", "2.5"),
        ("USE_GPU", "False"),
        ("PRECISION", "F32"),
        ("GPU_KERNELS", "Candle"),
        ("LOG_LEVEL", "WARNING"),
        ("DEBUG", "1"),
        ("TARGET_IMAGE_WIDTH", "256"),
        ("HF_TOKEN", "hf_secret"),
    ])
    .unwrap();
    assert_eq!((settings.host.as_str(), settings.port), ("0.0.0.0", 8000));
    assert_eq!(settings.http.max_image_bytes, 20_000_000);
    assert_eq!(settings.http.request_timeout, Duration::from_millis(2500));
    assert_eq!(settings.captioner.engine.device, DeviceChoice::Cpu);
    assert_eq!(settings.captioner.engine.precision, Precision::F32);
    assert_eq!(settings.captioner.engine.gpu_kernels, GpuKernels::Candle);
    assert_eq!(settings.captioner.target_width, Some(256));
    assert_eq!(settings.captioner.hub.token.as_deref(), Some("hf_secret"));
    assert_eq!(settings.log, LogSettings { level: Level::WARN, human: true });
}

#[test]
fn options_win_over_the_environment_which_wins_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    fs::write(&path, "PORT=1\nHOST=file\nMAX_WORKERS=3\n# a comment\n").unwrap();
    let environment = [("PORT", "2"), ("HOST", "environment"), ("MAX_WORKERS", "")];
    let mut values = Values::of_environment(environment).with_file(&path).unwrap();
    values.set_option("PORT", "3");
    let settings = Settings::new(&values).unwrap();
    assert_eq!((settings.host.as_str(), settings.port), ("environment", 3));
    assert_eq!(settings.captioner.max_workers, Some(3), "an empty value counts as not set");
    values.set_option("PORT", "x");
    let error = Settings::new(&values).unwrap_err();
    assert!(error.detail().contains("from the command line"), "{error}");

    fs::write(&path, "HF_TOKEN hf_secret\n").unwrap();
    let error = Values::default().with_file(&path).unwrap_err();
    assert!(error.detail().contains(".env") && !error.detail().contains("secret"), "{error}");
    assert!(Values::default().with_file(&folder.path().join("none")).is_ok());
}

#[test]
fn models_are_cached_where_huggingface_hub_caches_them() {
    let folder = |pairs: &[(&str, &str)]| settings(pairs).unwrap().captioner.hub.cache_dir;
    let all = [
        ("HOME", "/home/me"),
        ("XDG_CACHE_HOME", "/cache"),
        ("HF_HOME", "/hf"),
        ("HF_HUB_CACHE", "/hub"),
        ("MODEL_CACHE_DIR", "/models"),
    ];
    for (count, expected) in [
        (1, "/home/me/.cache/huggingface/hub"),
        (2, "/cache/huggingface/hub"),
        (3, "/hf/hub"),
        (4, "/hub"),
        (5, "/models"),
    ] {
        assert_eq!(folder(&all[..count]), Path::new(expected));
    }
}

fn protection(pairs: &[(&str, &str)]) -> ProtectionSettings {
    settings(pairs).unwrap().http.protection
}

#[test]
fn keys_are_read_from_the_setting_and_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let file = path.to_str().unwrap();
    fs::write(&path, "\u{feff}# of the web shop\r\n  third,with-comma \r\n\n#fifth\nfourth")
        .unwrap();
    let keys = protection(&[("API_KEYS", "first, second,"), ("API_KEYS_FILE", file)]).keys;
    for key in ["first", "second", "third,with-comma", "fourth"] {
        assert!(keys.find(key.as_bytes()).is_some(), "{key}");
    }
    for none in ["", "first, second", "# of the web shop", "#fifth", "fifth", "third"] {
        assert!(keys.find(none.as_bytes()).is_none(), "{none}");
    }
    assert!(protection(&[]).keys.is_empty());

    let wide: Vec<u8> = "first\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&path, wide).unwrap();
    let error = settings(&[("API_KEYS_FILE", file)]).unwrap_err();
    assert!(error.detail().contains("UTF-16"), "{error}");

    // A file without a key does not open the server.
    fs::write(&path, "# nothing yet\n").unwrap();
    let error = settings(&[("API_KEYS_FILE", file)]).unwrap_err();
    assert!(error.detail().contains("API_KEYS_FILE"), "{error}");
}

#[test]
fn keys_are_never_shown() {
    let shown = format!("{:?}", settings(&[("API_KEYS", "hush-hush")]).unwrap());
    assert!(shown.contains("ApiKeys(1)") && !shown.contains("hush"), "{shown}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    fs::write(&path, "good\nhush hush\n").unwrap();
    for setting in [("API_KEYS", "hush hush"), ("API_KEYS_FILE", path.to_str().unwrap())] {
        let error = settings(&[setting]).unwrap_err();
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }
}

#[test]
fn the_settings_of_protection_are_read() {
    let all = PublicEndpoints { health: true, metrics: true, docs: true };
    assert_eq!(protection(&[("PUBLIC_ENDPOINTS", " Health, metrics ,docs")]).public, all);
    let none = PublicEndpoints { health: false, metrics: false, docs: false };
    assert_eq!(protection(&[("PUBLIC_ENDPOINTS", "None")]).public, none);
    assert_eq!(protection(&[("CORS_ALLOW_ORIGINS", " * ")]).cors, CorsOrigins::Any);
    let two = protection(&[("CORS_ALLOW_ORIGINS", "https://a.example, http://localhost:3000")]);
    let origins = ["https://a.example", "http://localhost:3000"].map(String::from);
    assert_eq!(two.cors, CorsOrigins::List(origins.into()));
    let rate = |pairs: &[(&str, &str)]| {
        protection(pairs).rate.map(|rate| (rate.per_minute.get(), rate.burst.get()))
    };
    assert_eq!(rate(&[]), None);
    assert_eq!(rate(&[("RATE_LIMIT", "60")]), Some((60, 60)));
    assert_eq!(rate(&[("RATE_LIMIT", "60"), ("RATE_LIMIT_BURST", "5")]), Some((60, 5)));
    assert_eq!(protection(&[("TRUSTED_PROXY_COUNT", "1")]).proxies, 1);
}

#[test]
fn images_are_fetched_from_where_the_operator_says() {
    let fetch = |pairs: &[(&str, &str)]| settings(pairs).map(|settings| settings.http.fetch);
    let off = fetch(&[]).unwrap();
    assert_eq!(off.sources, FetchSources::Off);
    assert_eq!((off.timeout, off.max_bytes), (Duration::from_secs(10), 10 << 20));
    let public =
        fetch(&[("FETCH_URLS", "Public"), ("FETCH_TIMEOUT", "2.5"), ("MAX_IMAGE_SIZE", "1000")]);
    let expected = FetchSettings {
        sources: FetchSources::Public,
        timeout: Duration::from_millis(2500),
        max_bytes: 1000,
    };
    assert_eq!(public.unwrap(), expected);
    let hosts = "photos.example.com, *.example.org,192.168.1.5:9000";
    let listed = fetch(&[("FETCH_URLS", "list"), ("FETCH_HOSTS", hosts)]).unwrap();
    assert_eq!(listed.sources, FetchSources::Listed(hosts.parse().unwrap()));
    let unused = fetch(&[("FETCH_URLS", "public"), ("FETCH_HOSTS", hosts)]).unwrap_err();
    assert!(unused.detail().contains("FETCH_URLS=list"), "{unused}");
}

/// A mistake in the file of routes is named with its line; a key comes from a file or the environment, and
/// is never shown.
#[test]
fn routes_are_read_with_their_keys() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = write("key", "secret-key\n");
    let backend = "[[backend]]\nname = \"box\"\nkind = \"ollama\"\nmodel = \"llava\"\n\
                   base_url = \"http://127.0.0.1:1\"\n";
    let file = write("routes.toml", &format!("{backend}api_key_file = \"{key}\"\n"));
    let found = settings(&[("ROUTES_FILE", &file)]).unwrap();
    assert!(found.routing.keys[0].is_some());
    assert!(!format!("{found:?}").contains("secret-key"));
    let file = write("routes.toml", &format!("{backend}api_key_env = \"CUTLINE_NO_SUCH_KEY\"\n"));
    let error = settings(&[("ROUTES_FILE", &file)]).unwrap_err();
    assert!(error.detail().contains("CUTLINE_NO_SUCH_KEY"), "{error}");
    let file = write("routes.toml", &format!("{backend}colour = 1\n"));
    let error = settings(&[("ROUTES_FILE", &file)]).unwrap_err();
    assert!(error.detail().contains("ROUTES_FILE") && error.detail().contains("line 6"), "{error}");
    assert!(!error.detail().contains('\n'), "one sentence: {error}");
}

//! A server with a scripted model that answers at once or on command, and requests to send to it.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use cutline::captioner::{
    AppearanceOptions, Captioner, CaptionerParts, GenerationDefaults, MemoryLimits, ModelInfo,
};
use cutline::config::HttpSettings;
use cutline::engine::source::ModelSource;
use cutline::engine::{
    ClosedSet, EncodedImage, Engine, Event, Family, FinishReason, ImageInput, Job, JobId,
    PixelValues, Sequence, Task,
};
use cutline::error::{Error, ErrorKind, Result};
use cutline::generate::{Decoder, DecoderInput, Progress};
use cutline::http::{AppState, app};
use cutline::image::{DecodeLimits, PreprocessConfig};
use cutline::metrics::Metrics;
use cutline::routing::RoutingSettings;
use cutline::scheduler::VisionOrder;
use cutline::tokenizer::{Tokenizer, TokenizerSource};
use image::{ImageFormat, RgbImage};
use serde_json::Value;
use tower::ServiceExt;

const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\nsquare\nphoto\nof\n";
const CLS: u32 = 2;
/// "a red square" and the end.
const WRITES: [u32; 4] = [5, 6, 7, 3];

/// Controls the engine while it runs, and counts its work.
#[derive(Debug)]
pub(super) struct Script {
    /// It makes no progress while this is true.
    pub(super) stuck: AtomicBool,
    /// Its steps fail.
    pub(super) broken: AtomicBool,
    /// Its device is lost.
    lost: AtomicBool,
    /// Steps in which it writes a token; negative for any number.
    steps: AtomicIsize,
    starts: AtomicUsize,
    encodes: AtomicUsize,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            stuck: AtomicBool::default(),
            broken: AtomicBool::default(),
            lost: AtomicBool::default(),
            steps: AtomicIsize::new(-1),
            starts: AtomicUsize::default(),
            encodes: AtomicUsize::default(),
        }
    }
}

impl Script {
    /// Writes a token in each of this many steps, then makes no progress.
    pub(super) fn let_step(&self, steps: isize) {
        self.steps.store(steps, Ordering::SeqCst);
    }

    /// Jobs that were started.
    pub(super) fn starts(&self) -> usize {
        self.starts.load(Ordering::SeqCst)
    }

    /// Images that were encoded.
    pub(super) fn encodes(&self) -> usize {
        self.encodes.load(Ordering::SeqCst)
    }

    fn may_step(&self) -> bool {
        let take = |left: isize| if left > 0 { Some(left - 1) } else { None };
        match self.steps.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => true,
            Err(left) => left < 0,
        }
    }

    pub(super) fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::SeqCst);
    }

    pub(super) fn lose_the_device(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    pub(super) fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }
}

/// Finds every token equally probable, but "square" more than others if the image is not noise.
fn rank(job: &Job, set: &Arc<ClosedSet>) -> Vec<Sequence> {
    let ImageInput::Encoded(image) = &job.image else { panic!("the image is not encoded") };
    let smooth = *image.content::<bool>().unwrap();
    let prompt = [&[CLS], job.prompt.as_slice()].concat();
    let vocabulary = 1 + set.greatest_token().max(WRITES[2]);
    let row: Vec<f32> =
        (0..vocabulary).map(|token| if smooth && token == WRITES[2] { 5.0 } else { 0.0 }).collect();
    let input = DecoderInput::new(prompt, 0, row.len(), 64);
    let mut decoder = Decoder::rank(Arc::clone(set), input);
    let mut rows = 1;
    loop {
        match decoder.advance(&row.repeat(rows)).progress {
            Progress::Continue { tokens, .. } => rows = tokens.len(),
            Progress::Finished(sequences) => return sequences,
        }
    }
}

struct ScriptedEngine {
    script: Arc<Script>,
    /// Jobs with the number of tokens that each has written.
    jobs: Vec<(Job, usize)>,
}

impl Engine for ScriptedEngine {
    fn encode(&mut self, images: &[Arc<PixelValues>]) -> Result<Vec<EncodedImage>> {
        self.script.encodes.fetch_add(images.len(), Ordering::SeqCst);
        // Unlike noise, in which neighbours differ.
        let smooth = |image: &PixelValues| {
            let steps: f32 = image.data.windows(2).map(|pair| (pair[0] - pair[1]).abs()).sum();
            steps < 0.5 * image.data.len() as f32
        };
        let encode = |image: &Arc<PixelValues>| {
            EncodedImage::new(smooth(image), 1000).with_features(image.data[..2].to_vec())
        };
        Ok(images.iter().map(encode).collect())
    }

    fn start(&mut self, job: Job) -> Result<()> {
        self.script.starts.fetch_add(1, Ordering::SeqCst);
        self.jobs.push((job, 0));
        Ok(())
    }

    fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        if self.script.lost.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::DeviceLost, "illegal address as planned"));
        }
        if self.script.broken.load(Ordering::SeqCst) {
            self.jobs.clear();
            return Err(Error::model("the secret matrix is singular"));
        }
        if self.script.stuck.load(Ordering::SeqCst) || !self.script.may_step() {
            std::thread::sleep(Duration::from_millis(1));
            return Ok(());
        }
        self.jobs.retain_mut(|(job, written)| {
            let params = match job.task.task() {
                None => return false,
                Some(Task::Write(params)) => params,
                Some(Task::Rank(set)) => {
                    events.push(Event::Done { job: job.id, sequences: rank(job, set) });
                    return false;
                }
            };
            if params.num_beams == 1 {
                events.push(Event::Token { job: job.id, token: WRITES[*written] });
            }
            *written += 1;
            let length = params.max_new_tokens.min(WRITES.len());
            if *written < length {
                return true;
            }
            let written = &WRITES[..length];
            let whole = length == WRITES.len();
            let others = |token: &u32| {
                let all = [(*token, 0.5_f32), (CLS + 1, 0.25), (8, 0.125)];
                let all = all.into_iter().take(params.alternatives);
                all.map(|(token, probability)| (token, probability.ln())).collect()
            };
            let alternatives = match params.alternatives {
                0 => Vec::new(),
                _ => written.iter().map(others).collect(),
            };
            let sequence = Sequence {
                ids: [&[CLS], job.prompt.as_slice(), written].concat(),
                generated: length,
                confidence: 0.5,
                log_probabilities: vec![0.5_f32.ln(); length],
                alternatives,
                score: None,
                finish_reason: if whole { FinishReason::Stop } else { FinishReason::Length },
            };
            let sequences = vec![sequence; params.num_return_sequences];
            events.push(Event::Done { job: job.id, sequences });
            false
        });
        Ok(())
    }

    fn cancel(&mut self, job: JobId) {
        self.jobs.retain(|(other, _)| other.id != job);
    }

    fn reset(&mut self) {
        self.jobs.clear();
    }
}

/// A server without a socket.
pub(super) struct Fixture {
    pub(super) script: Arc<Script>,
    pub(super) state: AppState,
    pub(super) captioner: Captioner,
}

impl Fixture {
    /// One image in progress and one waiting; other settings have their defaults.
    pub(super) fn new() -> Self {
        Self::with(HttpSettings::default())
    }

    pub(super) fn with(settings: HttpSettings) -> Self {
        let fixture = Self::loading(settings);
        fixture.state.ready(fixture.captioner.clone());
        fixture
    }

    /// The captioner exists, but the server still considers it loading.
    pub(super) fn loading(settings: HttpSettings) -> Self {
        Self::build(settings, 1, MemoryLimits::default())
    }

    /// A queue of `capacity` slots, as many rows at a time, and these memory limits.
    pub(super) fn roomy(capacity: usize, memory: MemoryLimits) -> Self {
        let fixture = Self::build(HttpSettings::default(), capacity, memory);
        fixture.state.ready(fixture.captioner.clone());
        fixture
    }

    pub(super) fn build(settings: HttpSettings, capacity: usize, memory: MemoryLimits) -> Self {
        Self::sized(settings, capacity, capacity, memory)
    }

    /// A queue of `capacity` slots, and `rows` in progress.
    pub(super) fn sized(
        settings: HttpSettings,
        capacity: usize,
        rows: usize,
        memory: MemoryLimits,
    ) -> Self {
        let script = Arc::new(Script::default());
        let engine = ScriptedEngine { script: Arc::clone(&script), jobs: Vec::new() };
        let vocab = TokenizerSource { vocab: Some(VOCAB.as_bytes()), ..TokenizerSource::default() };
        let max_bytes = settings.max_image_bytes;
        let metrics = Metrics::new();
        let parts = CaptionerParts {
            tokenizer: Tokenizer::load(vocab).unwrap(),
            preprocess: PreprocessConfig::default().with_size(32, 32).unwrap(),
            limits: DecodeLimits { max_bytes, max_pixels: 100_000_000 },
            info: model_info(),
            extras: cutline::captioner::ModelExtras::default(),
            max_workers: 2,
            max_batch_size: rows,
            // As many rows as slots, for tests that keep images in progress.
            vision_order: VisionOrder::AllFirst,
            vision_batch: 1,
            queue_capacity: capacity,
            memory,
            fallback_text: "no description".into(),
            appearance: Some(AppearanceOptions { thumbnails: true }),
            metrics: metrics.clone(),
        };
        let captioner = Captioner::with_engine(Box::new(engine), parts).unwrap();
        Self { script, state: AppState::new(settings).with_metrics(metrics), captioner }
    }

    /// Adds the routes in `file`; all local backends are this model.
    pub(super) fn route(&self, file: &str) {
        self.route_with(file, Vec::new());
    }

    /// The same, with more models.
    pub(super) fn route_with(&self, file: &str, models: Vec<(String, Captioner)>) {
        let names = models.iter().map(|(name, _)| (name.clone(), ModelSource::Embedded));
        let settings = RoutingSettings {
            models: names.collect(),
            routes: cutline_route::Config::parse(file).unwrap(),
            limit: Duration::from_secs(28),
            ..RoutingSettings::default()
        };
        let loaded = cutline::routing::connect(self.captioner.clone(), models, &settings).unwrap();
        self.state.show_routes(loaded.routes.unwrap());
    }

    pub(super) fn app(&self) -> Router {
        app(self.state.clone())
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.app().oneshot(request).await.unwrap().into_parts();
        // The contract is longer than a MiB.
        let body = to_bytes(body, 1 << 21).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Sends a request whose caption fails after its answer has begun.
    pub(super) async fn send_and_break(&self, request: Request<Body>) -> Answer {
        self.script.set_stuck(true);
        let broken = async {
            eventually("one in the model", || self.captioner.status().in_flight == 1).await;
            // The answer begins when the image is in the queue, and that was before.
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.script.set_broken(true);
        };
        tokio::join!(self.send(request), broken).0
    }

    /// Asserts that the server still works.
    pub(super) async fn still_answers(&self) {
        // By the model, not from the cache.
        let answer = self.send(post("?cache=bypass", "image/png", png())).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.json()["caption"], "a red square");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Dropping the captioner waits for its engine.
        self.script.set_stuck(false);
    }
}

fn model_info() -> ModelInfo {
    ModelInfo {
        id: "scripted".into(),
        architecture: Family::Captioning.architecture().into(),
        tasks: vec!["caption".into()],
        family: Family::Captioning,
        embedding_size: None,
        parameters: 1,
        precision: "f32".into(),
        kernels: "none".into(),
        device: "cpu".into(),
        gpu: None,
        threads: 1,
        image_tokens: 5,
        input_size: [32, 32],
        vocab_size: 10,
        max_positions: 64,
        generation: GenerationDefaults {
            max_new_tokens: 20,
            max_new_tokens_limit: 64,
            min_new_tokens: 0,
            num_beams: 1,
            num_beams_limit: 10,
            num_captions_limit: 10,
            length_penalty: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
        },
        weight_bytes: 1,
        others: Vec::new(),
        digest: "blake3:00".into(),
        source: "embedded".into(),
        revision: None,
        license: None,
        load_ms: 1.0,
        warm_up_ms: 1.0,
        memory_bytes: None,
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks everything that a problem document must contain, and returns it.
    #[track_caller]
    pub(super) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self.header("content-length"), self.body.len().to_string(), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["type"], format!("urn:cutline:problem:{code}"));
        assert!(!problem["title"].as_str().unwrap().is_empty());
        assert!(problem["detail"].as_str().unwrap().len() > 20, "{problem}");
        assert_eq!(problem["request_id"], self.header("x-request-id"), "{problem}");
        assert!(problem.as_object().unwrap().values().all(|value| !value.is_null()));
        problem
    }
}

/// Whether errors of this address are problem documents, or have the shape of another program.
pub(super) fn has_problems(method: &str, path: &str) -> bool {
    let foreign = ["/v1", "/v2", "/api", "/pipeline", "/models", "/predict", "/info", "/mcp"];
    let own = ["/api/docs", "/api/realtime"];
    let below = |prefixes: &[&str]| {
        let rests = prefixes.iter().filter_map(|prefix| path.strip_prefix(prefix));
        rests.into_iter().any(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    below(&own) || !(below(&foreign) || path == "/" && method == "POST")
}

pub(super) fn picture(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([200, x as u8, y as u8]));
    if format == ImageFormat::Jpeg {
        return jpeg(&image);
    }
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_size(image.width() as usize, image.height() as usize);
    let mut encoder = encoder.start_compress(Vec::new()).unwrap();
    encoder.write_scanlines(image).unwrap();
    encoder.finish().unwrap()
}

/// A small image, different for every number.
pub(super) fn distinct(number: u32) -> Vec<u8> {
    picture(ImageFormat::Png, 20 + number % 100, 20 + number / 100)
}

pub(super) fn png() -> Vec<u8> {
    picture(ImageFormat::Png, 40, 30)
}

pub(super) fn post(query: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    post_to(&format!("/caption/generate{query}"), content_type, body)
}

pub(super) fn post_to(uri: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::builder().method(Method::POST).uri(uri);
    let request = if content_type.is_empty() {
        request
    } else {
        request.header("content-type", content_type)
    };
    request.body(body.into()).unwrap()
}

pub(super) fn raw(bytes: impl Into<Body>) -> Request<Body> {
    post("", "image/png", bytes)
}

pub(super) fn json(body: &Value) -> Request<Body> {
    post("", "application/json", body.to_string())
}

/// A form; each part has the attributes after `form-data`, and the content.
pub(super) fn form_bytes(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (attributes, content) in parts {
        let head = format!("--line\r\nContent-Disposition: form-data{attributes}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--line--\r\n");
    body
}

pub(super) fn form(parts: &[(&str, &[u8])]) -> Request<Body> {
    post("", "multipart/form-data; boundary=line", form_bytes(parts))
}

/// Waits until nothing is in progress, queued or about to be queued.
pub(super) async fn emptied(captioner: &Captioner) {
    let held = || {
        let status = captioner.status();
        status.in_flight + status.queue_depth + status.reserved
    };
    eventually("an empty model and queue", || held() == 0).await;
}

/// Waits until another thread has made the condition true.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what} did not come about");
}

//! Requests on routes to scripted backends, with the clock under the tests' control.

mod cache;
mod instruction;
mod quality;
mod reload;
mod script;

use std::io::Cursor;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use self::script::{Reply, Script, delta, ollama, openai};
use super::drive::Job;
use super::live::Live;
use super::shared::{Shared, Speaker};
use super::upstream::{ApiKey, Dial, Upstream};
use super::view::{Board, Routes};
use crate::captioner::{
    CachePolicy, Caption, CaptionEvent, CaptionParams, CaptionStream, Captioner, CaptionerSettings,
    Photo, Priority, Style,
};
use crate::metrics::Metrics;
use cutline_error::{ErrorKind, Result};
use cutline_route::Config;

const FILE: &str = r#"
[[backend]]
name = "box"
kind = "ollama"
base_url = "http://localhost"
model = "llava"

[[backend]]
name = "cloud"
kind = "openai"
base_url = "http://cloud.example/v1"
model = "vision-mini"
price = { per_1k_in = 0.5, per_1k_out = 2.0 }

[[route]]
name = "best"
backends = [["box"], ["cloud"]]
allow_remote = true
retry = { attempts = 2, base_ms = 100, cap_ms = 1000 }
"#;

const BOX: &str = "localhost";
const CLOUD: &str = "cloud.example";

/// Decodes photos; its model has nothing to do here.
fn main_model() -> Captioner {
    static MAIN: OnceLock<Captioner> = OnceLock::new();
    MAIN.get_or_init(|| Captioner::load(&CaptionerSettings::default()).unwrap()).clone()
}

fn key() -> ApiKey {
    ApiKey::new("secret-key").unwrap()
}

struct Bench {
    script: Script,
    shared: Arc<Shared>,
    metrics: Metrics,
}

impl Bench {
    fn new(file: &str) -> Self {
        main_model();
        let (script, metrics) = (Script::default(), Metrics::new());
        let config = Config::parse(file).unwrap();
        let speakers = config.backends.iter().map(|backend| {
            let dial = Arc::new(script.clone());
            Speaker::Upstream(Upstream::new(backend, Some(key()), dial).unwrap())
        });
        let speakers = speakers.collect();
        let shared = Shared::new(config, speakers, Duration::from_secs(57), metrics.clone());
        Self { script, shared, metrics }
    }

    /// Without the cache, which all tests share.
    fn start(&self, params: CaptionParams) -> CaptionStream {
        let main = main_model();
        let params = CaptionParams { cache: CachePolicy::Bypass, ..params };
        let job = Job {
            shared: Arc::clone(&self.shared),
            main: main.clone(),
            route: 0,
            photo: Arc::new(Photo::from(photo(8, 8))),
            params: Arc::new(params),
            priority: Priority::Interactive,
        };
        CaptionStream::routed(&main, |writer| job.run(writer))
    }

    async fn ask(&self) -> Result<Caption> {
        self.start(CaptionParams::default()).end().await
    }

    fn state(&self, backend: usize) -> &'static str {
        self.board().backends[backend].state
    }

    fn board(&self) -> Board {
        self.live().board()
    }

    fn live(&self) -> Routes {
        let dial: Arc<dyn Dial> = Arc::new(self.script.clone());
        let shared = Arc::clone(&self.shared);
        let keys = vec![Some(key()); shared.config().backends.len()];
        Routes::new(Live::new(shared, keys, Vec::new(), dial, JoinSet::new()))
    }
}

fn photo(width: u32, height: u32) -> Vec<u8> {
    let picture = ::image::RgbImage::from_pixel(width, height, ::image::Rgb([200, 30, 30]));
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, ::image::ImageFormat::Png).unwrap();
    file.into_inner()
}

fn status(status: u16) -> Reply {
    Reply::Status(status, "", "{}".to_owned())
}

#[tokio::test(start_paused = true)]
async fn the_second_backend_answers_at_once_and_the_answer_says_so() {
    let bench = Bench::new(FILE);
    bench.script.next(BOX, status(503));
    bench.script.usually(CLOUD, openai("a red square"));
    let begin = Instant::now();
    let caption = bench.ask().await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(50), "{:?}", begin.elapsed());
    assert_eq!((caption.caption.as_str(), caption.model.as_str()), ("a red square", "big"));
    let routing = caption.routing.clone().unwrap();
    assert_eq!((routing.route.as_str(), routing.backend.as_str()), ("best", "cloud"));
    assert_eq!((routing.attempts, routing.fallback), (2, true));
    assert_eq!(routing.reason.as_deref(), Some("server_error"));
    assert_eq!(routing.sent_to, ["cloud"], "the box is on this machine");
    assert!((routing.cost.unwrap() - 0.52).abs() < 1e-9, "{routing:?}");
    let json = serde_json::to_value(&caption).unwrap();
    assert!(json["captions"][0]["confidence"].is_null(), "nobody told it");
    let text = bench.metrics.render(crate::metrics::ServerSnapshot::default());
    for line in [
        r#"cutline_backend_attempts_total{backend="box",outcome="server_error"} 1"#,
        r#"cutline_backend_attempts_total{backend="cloud",outcome="ok"} 1"#,
        r#"cutline_backend_failovers_total{route="best",from="box",to="cloud",reason="server_error"} 1"#,
        r#"cutline_backend_cost_total{backend="cloud"} 0.52"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_is_small_and_bare_and_has_the_key_in_its_head_only() {
    let bench = Bench::new(FILE);
    bench.script.usually(BOX, ollama("a red square"));
    let main = main_model();
    let job = Job {
        shared: Arc::clone(&bench.shared),
        main: main.clone(),
        route: 0,
        photo: Arc::new(Photo::from(photo(1600, 800))),
        params: Arc::new(CaptionParams { style: Style::AltText, ..CaptionParams::default() }),
        priority: Priority::Bulk,
    };
    bench.script.next(
        BOX,
        Reply::Status(200, "", r#"{"message":{"content":"A red square."},"done":true}"#.to_owned()),
    );
    let caption = CaptionStream::routed(&main, |writer| job.run(writer)).end().await.unwrap();
    assert!(caption.caption.starts_with("A red square"), "{}", caption.caption);
    assert_eq!(caption.routing.unwrap().sent_to, [""; 0]);
    assert_eq!((caption.image.width, caption.image.height), (1600, 800));
    let seen = bench.script.seen(BOX).remove(0);
    assert!(seen.head.starts_with("post /api/chat http/1.1"), "{}", seen.head);
    assert!(seen.head.contains("authorization: bearer secret-key"), "{}", seen.head);
    let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(body["stream"], false, "alternative text comes in one piece");
    let text = body["messages"][0]["content"].as_str().unwrap();
    assert!(text.contains("alt text") && text.contains("125 characters"), "{text}");
    let image = body["messages"][0]["images"][0].as_str().unwrap();
    let jpeg = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, image).unwrap();
    let sent = cutline_image::decode(&jpeg, &cutline_image::DecodeLimits::default()).unwrap();
    assert_eq!((sent.width, sent.height), (1024, 512));
    assert!(!format!("{:?}", bench.shared).contains("secret-key"));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_says_nothing_is_given_up_after_its_time() {
    for silent in [Reply::Hang, Reply::Trickle, Reply::Stall(delta("a"))] {
        let bench = Bench::new(FILE);
        bench.script.usually(BOX, silent.clone());
        bench.script.usually(CLOUD, openai("a red square"));
        let begin = Instant::now();
        let caption = bench.ask().await.unwrap();
        let routing = caption.routing.unwrap();
        if matches!(silent, Reply::Stall(_)) {
            // OpenAI's words in Ollama's place.
            assert_eq!(routing.reason.as_deref(), Some("bad_answer"));
            continue;
        }
        assert_eq!(routing.reason.as_deref(), Some("timeout"), "{silent:?}");
        let took = begin.elapsed();
        assert!((20..21).contains(&took.as_secs()), "{silent:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_cannot_be_used_are_failures() {
    let long = format!("{{\"message\":{{\"content\":\"{}\"}}}}\n", "word ".repeat(100));
    for bad in [
        Reply::Status(200, "", "<html>".to_owned()),
        Reply::Status(200, "", String::new()),
        Reply::Status(200, "", "{\"error\":\"out of memory\"}\n".to_owned()),
        Reply::Status(200, "", "{\"message\":{\"content\":\" \"},\"done\":true}\n".to_owned()),
        Reply::Status(200, "", "{\"message\":{\"content\":\"a\"},\"done\":false}\n".to_owned()),
        Reply::Endless("x".repeat(1000)),
        Reply::Endless(long),
    ] {
        let bench = Bench::new(FILE);
        bench.script.usually(BOX, bad.clone());
        bench.script.usually(CLOUD, openai("a red square"));
        let caption = timeout(Duration::from_secs(30), bench.ask()).await.unwrap().unwrap();
        let routing = caption.routing.unwrap();
        assert_eq!(routing.reason.as_deref(), Some("bad_answer"), "{bad:?}");
        assert_eq!(routing.attempts, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_each_is_tried_twice_and_the_client_learns_when_to_come_back() {
    let bench = Bench::new(FILE);
    bench.script.usually(BOX, status(500));
    bench.script.usually(CLOUD, Reply::Refuse);
    let begin = Instant::now();
    let error = bench.ask().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(error.detail().contains("'best'") && error.retry_after().is_some(), "{error}");
    assert!(begin.elapsed() <= Duration::from_millis(250), "two pauses of at most 100 ms");
    let asked = bench.script.seen(BOX);
    assert_eq!(asked.len(), 2);
    assert!(asked[1].at - asked[0].at <= Duration::from_millis(110));
}

#[tokio::test(start_paused = true)]
async fn a_refused_photo_is_sent_to_nobody_else_and_a_refused_key_is_not_sent_again() {
    let bench = Bench::new(FILE);
    bench.script.next(BOX, status(413));
    bench.script.usually(CLOUD, openai("a red square"));
    let error = bench.ask().await.unwrap_err();
    assert!(error.detail().contains("413"), "{error}");
    assert!(bench.script.seen(CLOUD).is_empty());
    bench.script.usually(BOX, status(401));
    for _ in 0..5 {
        assert_eq!(bench.ask().await.unwrap().routing.unwrap().backend, "cloud");
    }
    assert_eq!(bench.script.seen(BOX).len(), 2, "413, and 401 once");
    assert_eq!(bench.state(0), "open");
}

#[tokio::test(start_paused = true)]
async fn a_photo_was_not_sent_where_there_was_no_connection() {
    let bench = Bench::new(&FILE.replace(r#"[["box"], ["cloud"]]"#, r#"[["cloud"], ["box"]]"#));
    bench.script.next(CLOUD, Reply::Refuse);
    bench.script.next(CLOUD, status(503));
    bench.script.usually(BOX, ollama("a red square"));
    for sent_to in [&[][..], &["cloud"]] {
        let routing = bench.ask().await.unwrap().routing.unwrap();
        assert_eq!((routing.backend.as_str(), routing.attempts), ("box", 2));
        assert_eq!(routing.sent_to, sent_to);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_changes_its_backend_only_before_the_first_word() {
    let half = "{\"message\":{\"content\":\"a wrong\"},\"done\":false}\n".to_owned();
    // Nobody has seen the half answer: the second backend answers from the start.
    let bench = Bench::new(FILE);
    bench.script.usually(BOX, Reply::Pieces(vec![half.clone()]));
    bench.script.usually(CLOUD, openai("a red square"));
    assert_eq!(bench.ask().await.unwrap().caption, "a red square");
    // The client has: it gets an error, and nothing of another caption.
    let bench = Bench::new(FILE);
    bench.script.usually(BOX, Reply::Pieces(vec![half]));
    bench.script.usually(CLOUD, openai("a red square"));
    let mut stream = bench.start(CaptionParams::default());
    stream.accepted().await.unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!(first, CaptionEvent::Text("a wrong".to_owned()));
    let error = stream.next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady, "{error}");
    assert!(bench.script.seen(CLOUD).is_empty());
}

#[tokio::test(start_paused = true)]
async fn words_arrive_as_they_are_written() {
    let bench = Bench::new(&FILE.replace(r#"[["box"], ["cloud"]]"#, r#"[["cloud"]]"#));
    let end = "data: [DONE]\n\n".to_owned();
    let pieces =
        vec![delta(" a"), ": keep-alive\n\n".to_owned(), delta(" red"), delta(" square"), end];
    bench.script.usually(CLOUD, Reply::Pieces(pieces));
    let mut stream = bench.start(CaptionParams::default());
    let mut texts = Vec::new();
    let done = loop {
        match stream.next().await.unwrap() {
            CaptionEvent::Text(text) => texts.push(text),
            CaptionEvent::Done(caption) => break caption,
        }
    };
    assert_eq!(texts, ["a", "a red", "a red square"]);
    assert_eq!(done.caption, "a red square");
    assert_eq!(done.routing.unwrap().cost, None, "without tokens the cost is not known");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_stops_everything() {
    let bench = Bench::new(FILE);
    bench.script.usually(BOX, Reply::Hang);
    let mut stream = bench.start(CaptionParams::default());
    let waiting = timeout(Duration::from_secs(1), stream.accepted()).await;
    assert!(waiting.is_err());
    let board = || bench.board();
    assert_eq!(board().backends[0].in_flight, 1);
    drop(stream);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!((board().backends[0].in_flight, bench.script.closed()), (0, 1));
    assert_eq!(board().backends[0].failed, 0, "nobody failed");
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_than_allowed_are_sent_at_a_time_and_the_others_wait() {
    let bench = Bench::new(
        &FILE
            .replace("model = \"llava\"", "model = \"llava\"\nmax_parallel = 1")
            .replace(r#"[["box"], ["cloud"]]"#, r#"[["box"]]"#),
    );
    let line = "{\"message\":{\"content\":\"a\"},\"done\":true}\n".to_owned();
    bench.script.usually(BOX, Reply::Pieces(vec![line]));
    let streams: Vec<CaptionStream> =
        (0..4).map(|_| bench.start(CaptionParams::default())).collect();
    for mut stream in streams {
        stream.end().await.unwrap();
    }
    assert_eq!(bench.script.seen(BOX).len(), 4);
}

/// One request a minute for three hours, while the first backend is away; it comes back, and is found.
#[tokio::test(start_paused = true)]
async fn three_hours_of_outage_lose_no_request_and_are_over_within_thirty_seconds() {
    let bench = Bench::new(FILE);
    let _watch = bench.shared.watch();
    bench.script.usually(BOX, Reply::Refuse);
    bench.script.usually(CLOUD, openai("a red square"));
    for minute in 0..180 {
        let caption = bench.ask().await.unwrap_or_else(|error| panic!("minute {minute}: {error}"));
        assert_eq!(caption.caption, "a red square");
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(bench.state(0), "open");
    bench.script.usually(BOX, ollama("a red square"));
    let back = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let routing = bench.ask().await.unwrap().routing.unwrap();
        if routing.backend == "box" {
            break;
        }
        assert!(back.elapsed() < Duration::from_secs(30), "it is not found again");
    }
    assert_eq!(bench.state(0), "closed");
}

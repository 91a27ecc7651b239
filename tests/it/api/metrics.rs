//! `GET /metrics`: the format, the numbers after known events, and the bounded set of labels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;

use super::fixture::{Fixture, distinct, eventually, form_bytes, png, post, post_to};

/// A backend that is not there, and one that has a price.
pub(super) const ROUTES: &str = r#"
[[backend]]
name = "away"
kind = "ollama"
base_url = "http://127.0.0.1:1"
model = "llava"

[[backend]]
name = "here"
kind = "local"
price = { per_image = 0.01 }

[[route]]
name = "best"
backends = [["away"], ["here"]]
"#;

/// Names and values.
pub(super) type Labels = Vec<(String, String)>;

/// A parsed page in the text format of Prometheus.
pub(super) struct Page {
    /// The type by the name of the family.
    types: BTreeMap<String, String>,
    /// The value by name and labels, as written.
    pub(super) samples: BTreeMap<String, f64>,
}

impl Page {
    /// Parses strictly: HELP and TYPE of a family come once and before its samples, which are
    /// contiguous.
    fn parse(text: &str) -> Self {
        let mut page = Self { types: BTreeMap::new(), samples: BTreeMap::new() };
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        assert!(text.ends_with('\n'), "the last line ends, too");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(helped.insert(name.to_owned()), "{name} is explained twice");
                assert!(help.len() > 10 && help.ends_with('.') && !help.ends_with(".."), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(helped.contains(name), "{name} is not explained");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                let before = page.types.insert(name.to_owned(), kind.to_owned());
                assert!(before.is_none(), "{name} has two types");
                name.clone_into(&mut family);
            } else {
                page.sample(line, &family);
            }
        }
        page.check_histograms();
        page
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let name = series.split('{').next().unwrap();
        let kind = self.types[family].as_str();
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{name} in {family}"));
        match kind {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
            "counter" => assert!(suffix.is_empty() && name.ends_with("_total"), "{line}"),
            _ => assert!(suffix.is_empty() && !name.ends_with("_total"), "{line}"),
        }
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.chars().all(letters), "{line}");
        assert!(name.starts_with("cutline_") || name.starts_with("process_"), "{line}");
        labels(series);
        let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let before = self.samples.insert(series.to_owned(), value);
        assert!(before.is_none(), "{series} is there twice");
    }

    /// Buckets are cumulative, and the last one equals the count.
    fn check_histograms(&self) {
        for (name, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut groups: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for (series, value) in &self.samples {
                if series.starts_with(&format!("{name}_bucket{{")) {
                    let mut labels = labels(series);
                    let place = labels.iter().position(|(name, _)| name == "le").expect("a bound");
                    let bound = labels.remove(place).1;
                    let bound = bound.trim_start_matches('+').parse().unwrap();
                    groups.entry(labels).or_default().push((bound, *value));
                }
            }
            assert!(!groups.is_empty(), "{name} has no buckets");
            for (labels, mut buckets) in groups {
                buckets.sort_by(|one, two| one.0.total_cmp(&two.0));
                assert!(buckets.is_sorted_by(|one, two| one.1 <= two.1), "{name} {labels:?}");
                let (bound, all) = *buckets.last().unwrap();
                assert!(bound.is_infinite(), "{name} {labels:?}");
                let pairs: Vec<&str> = labels.iter().map(|(_, value)| value.as_str()).collect();
                assert_eq!(self.sum(&format!("{name}_count"), &pairs), all, "{name} {labels:?}");
            }
        }
    }

    /// The sum of all samples of `name` with these labels.
    fn sum(&self, name: &str, values: &[&str]) -> f64 {
        let wanted = |series: &str| {
            let labels = labels(series);
            series.split('{').next() == Some(name)
                && values.iter().all(|value| labels.iter().any(|(_, own)| own == value))
        };
        self.samples.iter().filter(|(series, _)| wanted(series)).map(|(_, value)| value).sum()
    }
}

/// The labels of a series.
pub(super) fn labels(series: &str) -> Labels {
    let Some((_, rest)) = series.split_once('{') else { return Vec::new() };
    let inside = rest.strip_suffix('}').unwrap_or_else(|| panic!("{series}"));
    let label = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("{series}"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        (name.to_owned(), value.unwrap_or_else(|| panic!("{series}")).to_owned())
    };
    // No value contains a quotation mark or a comma, except the list of features.
    inside
        .split("\",")
        .map(|pair| format!("{}\"", pair.trim_end_matches('"')))
        .map(|p| label(&p))
        .collect()
}

pub(super) async fn page(fixture: &Fixture) -> Page {
    let answer = fixture.get("/metrics").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    Page::parse(std::str::from_utf8(&answer.body).unwrap())
}

fn roomy() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

#[tokio::test]
async fn requests_are_counted_by_route_and_status() {
    let fixture = roomy();
    let before = page(&fixture).await;
    assert_eq!(before.sum("cutline_http_requests_total", &[]), 0.0, "nothing was asked before");
    fixture.send(post("", "image/png", png())).await;
    fixture.send(post("", "image/png", png())).await;
    fixture.send(post("?num_beams=99", "image/png", png())).await.problem(422, "invalid_parameter");
    fixture.send(post("", "image/png", "text")).await.problem(415, "unsupported_format");
    let page = page(&fixture).await;
    let requests = |values: &[&str]| page.sum("cutline_http_requests_total", values);
    assert_eq!(requests(&["/caption/generate", "200"]), 2.0);
    assert_eq!(requests(&["/caption/generate", "422"]), 1.0);
    assert_eq!(requests(&["/caption/generate", "415"]), 1.0);
    assert_eq!(requests(&["/metrics", "200"]), 1.0, "the first look at it");
    let seconds = "cutline_http_request_duration_seconds";
    assert_eq!(page.sum(&format!("{seconds}_count"), &["/caption/generate"]), 4.0);
    assert!(page.sum(&format!("{seconds}_sum"), &["/caption/generate"]) > 0.0);
    let rejected = |reason| page.sum("cutline_rejected_total", &[reason]);
    assert_eq!((rejected("invalid_parameter"), rejected("unsupported_format")), (1.0, 1.0));
    assert_eq!(page.sum("cutline_rejected_total", &[]), 2.0);
    // The scrape itself.
    assert_eq!(page.sum("cutline_http_requests_in_flight", &[]), 1.0);
}

#[tokio::test]
async fn caches_stages_and_tokens_are_counted() {
    let fixture = roomy();
    for query in ["", "", "?prompt=photo+of", "?cache=bypass", "?cache=refresh", "?num_beams=2"] {
        let answer = fixture.send(post(query, "image/png", png())).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {answer:?}");
    }
    let page = page(&fixture).await;
    let lookups = |cache, result| page.sum("cutline_cache_lookups_total", &[cache, result]);
    assert_eq!(lookups("answers", "miss"), 3.0, "plain, with a prompt, with beams");
    assert_eq!(lookups("answers", "hit"), 1.0);
    assert_eq!(lookups("answers", "coalesced"), 0.0);
    assert_eq!(lookups("images", "miss"), 1.0, "plain");
    assert_eq!(lookups("images", "hit"), 2.0, "with a prompt, with beams");
    assert!(page.sum("cutline_cache_bytes", &["answers"]) > 100.0);
    assert!(page.sum("cutline_cache_bytes", &["images"]) > 1000.0);
    assert_eq!(page.sum("cutline_cache_limit_bytes", &["answers"]), f64::from(64 << 20));

    // Plain, bypassed and refreshed requests were decoded.
    let images = |stage| page.sum("cutline_stage_duration_seconds_count", &[stage]);
    assert_eq!(["decode", "preprocess", "analysis", "vision"].map(images), [3.0; 4]);
    assert_eq!(["queue", "decoder"].map(images), [5.0; 2]);
    assert_eq!(page.sum("cutline_images_captioned_total", &[]), 5.0);
    assert_eq!(page.sum("cutline_images_encoded_total", &[]), 3.0);

    assert_eq!(page.sum("cutline_prompt_tokens_total", &[]), 2.0);
    assert_eq!(page.sum("cutline_generated_tokens_total", &[]), 5.0 * 4.0);
    let rows = |bound: &str| page.sum("cutline_batch_rows_bucket", &[bound]);
    assert_eq!(rows("1"), 4.0 * 4.0, "one image at a time");
    assert_eq!(rows("2") - rows("1"), 4.0, "two beams");
    assert_eq!(page.sum("cutline_queue_capacity", &[]), 8.0);
    assert_eq!(page.sum("cutline_ready", &[]), 1.0);
    assert_eq!(page.sum("cutline_model_info", &["scripted", "cpu", "f32"]), 1.0);
    assert_eq!(page.sum("cutline_build_info", &[env!("CARGO_PKG_VERSION")]), 1.0);
}

#[tokio::test]
async fn coalesced_requests_are_counted_and_the_queue_is_shown() {
    let fixture = Arc::new(Fixture::roomy(2, MemoryLimits::default()));
    fixture.script.set_stuck(true);
    let send = |request: Request<Body>| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move { fixture.send(request).await })
    };
    let first = send(post("", "image/png", png()));
    let captioner = &fixture.captioner;
    eventually("an image in the model", || captioner.status().in_flight == 1).await;
    let second = send(post("", "image/png", png()));
    // One more is in progress, and one waits.
    let third = send(post("", "image/png", distinct(1)));
    eventually("another one", || captioner.status().in_flight == 2).await;
    let fourth = send(post("", "image/png", distinct(2)));
    eventually("a line", || captioner.status().queue_depth == 1).await;
    let busy = page(&fixture).await;
    assert_eq!(busy.sum("cutline_images_in_flight", &[]), 2.0);
    assert!(busy.sum("cutline_queue_depth", &[]) >= 1.0);
    assert!(busy.sum("cutline_inflight_bytes", &[]) > 0.0);
    assert!(busy.sum("cutline_http_requests_in_flight", &[]) >= 4.0);
    while page(&fixture).await.sum("cutline_cache_lookups_total", &["coalesced"]) < 1.0 {
        tokio::task::yield_now().await;
    }
    fixture.script.set_stuck(false);
    for task in [first, second, third, fourth] {
        assert_eq!(task.await.unwrap().status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_full_queue_and_bad_images_of_a_batch_are_counted_as_rejections() {
    let fixture = Arc::new(Fixture::new());
    fixture.script.set_stuck(true);
    let mut tasks = Vec::new();
    for n in 0..2 {
        let own = Arc::clone(&fixture);
        tasks.push(tokio::spawn(async move { own.send(post("", "image/png", distinct(n))).await }));
        let captioner = &fixture.captioner;
        // The first one leaves the queue before the second one needs its only slot.
        let arrived = || {
            let status = captioner.status();
            (status.in_flight, status.queue_depth) == (1, n as usize)
        };
        eventually("one image in progress, then one in the queue", arrived).await;
    }
    fixture.send(post("", "image/png", distinct(9))).await.problem(429, "queue_full");
    assert_eq!(page(&fixture).await.sum("cutline_rejected_total", &["queue_full"]), 1.0);
    fixture.script.set_stuck(false);
    for task in tasks {
        assert_eq!(task.await.unwrap().status, StatusCode::OK);
    }

    let fixture = roomy();
    let good = png();
    let parts: [(&str, &[u8]); 2] = [
        ("; name=\"images\"; filename=\"a.png\"", &good),
        ("; name=\"images\"; filename=\"b.png\"", b"no image"),
    ];
    let form = form_bytes(&parts);
    let batch = post_to("/caption/batch", "multipart/form-data; boundary=line", form);
    assert_eq!(fixture.send(batch).await.status, StatusCode::OK);
    let page = page(&fixture).await;
    assert_eq!(page.sum("cutline_rejected_total", &["unsupported_format"]), 1.0);
    assert_eq!(page.sum("cutline_rejected_total", &[]), 1.0, "the batch itself was answered");
}

#[tokio::test]
async fn failures_of_the_model_are_counted() {
    let fixture = roomy();
    fixture.script.set_broken(true);
    fixture.send(post("", "image/png", png())).await.problem(500, "internal");
    fixture.script.set_broken(false);
    let broken = page(&fixture).await;
    assert_eq!(broken.sum("cutline_model_failures_total", &[]), 1.0);
    assert_eq!(broken.sum("cutline_model_rebuilds_total", &[]), 1.0);
    assert_eq!(broken.sum("cutline_model_retries_total", &[]), 0.0, "it was alone");
    assert_eq!(broken.sum("cutline_model_degraded", &[]), 1.0);
    assert_eq!(broken.sum("cutline_rejected_total", &["model_error"]), 1.0);
    fixture.still_answers().await;
    let well = page(&fixture).await;
    assert_eq!(well.sum("cutline_model_degraded", &[]), 0.0);
    assert_eq!(well.sum("cutline_model_out_of_memory_total", &[]), 0.0);
}

#[tokio::test]
async fn clients_cannot_create_labels() {
    let fixture = roomy();
    let series = |page: &Page| page.samples.keys().cloned().collect::<BTreeSet<_>>();
    fixture.get("/nothing/0").await;
    page(&fixture).await;
    let before = series(&page(&fixture).await);
    for n in 1..50 {
        fixture.get(&format!("/nothing/{n}")).await.problem(404, "not_found");
        fixture.get(&format!("/health/live?{n}={n}")).await;
        let request = Request::builder().method(format!("M{n}").as_str()).uri("/nothing");
        fixture.send(request.body(Body::empty()).unwrap()).await;
    }
    let after = page(&fixture).await;
    let new: Vec<String> = series(&after).difference(&before).cloned().collect();
    assert!(new.iter().all(|series| series.contains("\"/health/live\"")), "{new:?}");
    assert_eq!(after.sum("cutline_http_requests_total", &["unmatched", "404"]), 99.0);
}

#[tokio::test]
async fn metrics_are_served_while_loading_and_while_stopping() {
    let fixture = Fixture::loading(HttpSettings::default());
    let process = post_to("/image/process", "image/png", png());
    assert_eq!(fixture.send(process).await.status, StatusCode::OK);
    fixture.get("/health/ready").await.problem(503, "not_ready");
    let early = page(&fixture).await;
    assert_eq!(early.sum("cutline_rejected_total", &[]), 0.0, "a probe is no work");
    assert_eq!(early.sum("cutline_ready", &[]), 0.0);
    assert!(!early.types.contains_key("cutline_model_info"));
    assert_eq!(early.sum("cutline_stage_duration_seconds_count", &["decode"]), 1.0);
    assert_eq!(early.sum("cutline_stage_duration_seconds_count", &["analysis"]), 1.0);
    assert!(early.sum("cutline_inflight_limit_bytes", &[]) > 0.0);
    fixture.state.ready(fixture.captioner.clone());
    fixture.state.stop();
    let late = page(&fixture).await;
    assert_eq!(late.sum("cutline_ready", &[]), 0.0);
    assert!(late.types.contains_key("cutline_model_info"));
}

#[tokio::test]
async fn servers_in_one_process_count_separately() {
    let (one, two) = (roomy(), roomy());
    one.send(post("", "image/png", png())).await;
    assert_eq!(page(&two).await.sum("cutline_http_requests_total", &[]), 0.0);
    assert_eq!(page(&one).await.sum("cutline_http_requests_total", &[]), 1.0);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_process_is_described() {
    let page = page(&roomy()).await;
    for name in [
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
    ] {
        assert!(page.sum(name, &[]) > 0.0, "{name}");
    }
}

/// Every name in the table of docs/observability.md is exported, and every exported name is in it.
#[tokio::test]
async fn the_documentation_lists_every_name() {
    const PAGE: &str = include_str!("../../../docs/observability.md");
    let fixture = roomy();
    fixture.route(ROUTES);
    fixture.send(post("?num_beams=0", "image/png", png())).await;
    fixture.send(post("?model=best", "image/png", png())).await;
    let exported: BTreeSet<String> = page(&fixture).await.types.into_keys().collect();
    let (_, section) = PAGE.split_once("\n## Metrics").expect("a section on metrics");
    let section = section.split("\n## ").next().unwrap();
    let listed: BTreeSet<String> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|name| name.split('{').next().unwrap().to_owned())
        .collect();
    assert_eq!(listed, exported);
}

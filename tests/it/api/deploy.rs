//! The files in `deploy/`: the metrics they query exist, and the proxies accept what the server
//! accepts.

use std::collections::{BTreeMap, BTreeSet};

use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;
use serde_json::Value;

use super::fixture::{Fixture, png, post};
use super::metrics::{ROUTES, labels, page};

const ALERTS: &str = include_str!("../../../deploy/prometheus/alerts.yml");
const PROMETHEUS: &str = include_str!("../../../deploy/prometheus/prometheus.yml");
const DASHBOARD: &str = include_str!("../../../deploy/grafana/dashboards/cutline.json");
const DATA_SOURCE: &str =
    include_str!("../../../deploy/grafana/provisioning/datasources/prometheus.yml");
const NGINX: &str = include_str!("../../../deploy/proxy/nginx.conf");
const CADDY: &str = include_str!("../../../deploy/proxy/Caddyfile");
const HAPROXY: &str = include_str!("../../../deploy/proxy/haproxy.cfg");
const COMPOSE: &str = include_str!("../../../compose.yaml");
const SYSTEMD: &str = include_str!("../../../deploy/systemd/cutline.service");

/// The exported samples, with the names of their labels.
async fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let fixture = Fixture::roomy(8, MemoryLimits::default());
    fixture.send(post("", "image/png", png())).await;
    fixture.send(post("?num_beams=0", "image/png", png())).await;
    fixture.route(ROUTES);
    fixture.send(post("?model=best", "image/png", png())).await;
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for series in page(&fixture).await.samples.keys() {
        let name = series.split('{').next().unwrap().to_owned();
        // Prometheus adds these two.
        let own = labels(series).into_iter().map(|(label, _)| label);
        names.entry(name).or_default().extend(own.chain(["job".into(), "instance".into()]));
    }
    names
}

/// The metrics in an expression, each with the labels that it selects by.
fn asked(text: &str) -> Vec<(String, Vec<String>)> {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = text.match_indices("cutline_").chain(text.match_indices("process_"));
    starts
        .filter(|(at, _)| !text[..*at].ends_with(part_of_name))
        .map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|c| !part_of_name(c)).unwrap_or(rest.len());
            let inside = rest[end..]
                .strip_prefix('{')
                .map_or("", |rest| rest.split('}').next().expect("the selector ends"));
            // Values may contain commas, but a label always follows a comma after a quotation mark.
            let chosen = inside.split(", ").filter_map(|pair| pair.split(['=', '!']).next());
            let chosen = chosen.map(|label| label.trim().to_owned());
            (rest[..end].to_owned(), chosen.filter(|label| !label.is_empty()).collect())
        })
        .collect()
}

/// The labels after `by`.
fn grouped(text: &str) -> impl Iterator<Item = &str> {
    text.split("by (").skip(1).flat_map(|rest| rest.split(')').next().unwrap().split(", "))
}

fn expressions(dashboard: &Value) -> Vec<&str> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap()).collect()
}

fn all_exist(text: &str, exported: &BTreeMap<String, BTreeSet<String>>) {
    let asked = asked(text);
    assert!(!asked.is_empty(), "it asks for nothing: {text}");
    for (name, chosen) in asked {
        let known = exported.get(&name).unwrap_or_else(|| panic!("{name} is not exported: {text}"));
        for label in chosen {
            assert!(known.contains(&label), "{name} has no label {label}: {text}");
        }
    }
    let labels: BTreeSet<&String> = exported.values().flatten().collect();
    for label in grouped(text) {
        assert!(labels.contains(&label.trim().to_owned()), "there is no label {label}: {text}");
    }
}

#[tokio::test]
async fn the_metrics_of_dashboard_and_alerts_exist() {
    let exported = exported().await;
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 30, "{}", expressions.len());
    for text in expressions {
        all_exist(text, &exported);
    }
    let alerts = ALERTS.split("- alert: ").skip(1).filter(|alert| !alert.contains("up{job"));
    assert_eq!(alerts.clone().count(), 9);
    for alert in alerts {
        all_exist(alert.split("labels:").next().unwrap(), &exported);
    }
    // And they cover every metric of failures.
    for name in ["failures", "rebuilds", "retries", "out_of_memory"] {
        assert!(DASHBOARD.contains(&format!("cutline_model_{name}_total")), "{name}");
    }
}

#[test]
fn expressions_are_parsed() {
    let text = "sum by (le, route) (rate(cutline_x_bucket{job=\"$job\", route!~\"/a|b\"}[5m])) / process_y";
    let expected = [
        ("cutline_x_bucket".to_owned(), vec!["job".to_owned(), "route".to_owned()]),
        ("process_y".to_owned(), Vec::new()),
    ];
    assert_eq!(asked(text), expected);
    assert_eq!(grouped(text).collect::<Vec<_>>(), ["le", "route"]);
}

#[test]
fn panels_do_not_overlap_and_use_the_provisioned_data_source() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{panel}");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(place), "two panels at {place:?}: {}", panel["title"]);
        }
    }
    let uid = "uid: cutline-prometheus\n";
    assert!(DATA_SOURCE.contains(uid), "the name of the data source");
    let named = DASHBOARD.matches("\"uid\": \"cutline-prometheus\"").count();
    assert_eq!(named, DASHBOARD.matches("\"uid\":").count() - 1, "all but the dashboard's own");
    assert!(PROMETHEUS.contains("- job_name: cutline\n") && PROMETHEUS.contains("- alerts.yml\n"));
    assert!(
        DATA_SOURCE.contains("timeInterval: 15s") && PROMETHEUS.contains("scrape_interval: 15s")
    );
}

/// The number of `unit`s after `mark`.
fn numbers(text: &str, mark: &str, unit: &str) -> Vec<u64> {
    let words = text.split(mark).skip(1).filter_map(|rest| rest.split_whitespace().next());
    words
        .map(|word| word.trim_end_matches(';').strip_suffix(unit).unwrap().parse().unwrap())
        .collect()
}

#[test]
fn the_proxies_accept_what_the_server_accepts() {
    let settings = HttpSettings::default();
    // Base64 with line breaks, and parameters: the maximum that `http/extract` reads for one image.
    let single = (settings.max_image_bytes * 3 / 2 + (64 << 10)).div_ceil(1 << 20) as u64;
    let batch = settings.max_inflight_bytes >> 20;
    assert_eq!(numbers(NGINX, "client_max_body_size ", "m"), [single, batch]);
    assert_eq!(numbers(CADDY, "max_size ", "MiB"), [batch, single]);
    let patience = 2 * settings.request_timeout.as_secs();
    for seconds in [
        numbers(NGINX, "proxy_read_timeout ", "s"),
        numbers(CADDY, "response_header_timeout ", "s"),
        numbers(HAPROXY, "timeout server ", "s"),
    ] {
        assert!(seconds.iter().all(|&seconds| seconds > patience) && !seconds.is_empty());
    }
    let idle = settings.idle_timeout.as_secs();
    for seconds in [
        numbers(NGINX, "keepalive_timeout ", "s"),
        numbers(CADDY, "keepalive ", "s"),
        numbers(HAPROXY, "timeout http-keep-alive ", "s"),
        numbers(HAPROXY, "pool-purge-delay ", "s"),
    ] {
        assert!(seconds.iter().all(|&seconds| seconds < idle) && !seconds.is_empty());
    }
}

#[test]
fn supervisors_and_load_balancers_wait_long_enough_when_a_server_stops() {
    let HttpSettings { shutdown_delay, shutdown_grace, .. } = HttpSettings::default();
    let needed = (shutdown_delay + shutdown_grace).as_secs();
    for seconds in
        [numbers(COMPOSE, "stop_grace_period: ", "s"), numbers(SYSTEMD, "TimeoutStopSec=", "")]
    {
        assert!(seconds.iter().all(|&seconds| seconds > needed) && !seconds.is_empty());
    }
    // A check that has just succeeded, and as many as must fail.
    let [interval, failures] = ["inter ", "fall "].map(|mark| {
        let unit = if mark == "inter " { "s" } else { "" };
        numbers(HAPROXY, mark, unit)[0]
    });
    assert!(interval * (failures + 1) < shutdown_delay.as_secs());
}

//! CORS: which web sites may use the server.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use cutline::config::{ApiKeys, CorsOrigins, HttpSettings, ProtectionSettings};

use super::fixture::{Answer, Fixture, png, raw};

const SITE: &str = "https://app.example.com";

fn fixture(cors: CorsOrigins) -> Fixture {
    let protection =
        ProtectionSettings { keys: ApiKeys::new(["key"]), cors, ..ProtectionSettings::default() };
    Fixture::with(HttpSettings { protection, ..HttpSettings::default() })
}

fn listed() -> Fixture {
    fixture(CorsOrigins::List(vec!["http://localhost:3000".into(), SITE.into()]))
}

/// The preflight of a browser that sends an image with a key.
async fn preflight(fixture: &Fixture, origin: &str) -> Answer {
    let request = Request::options("/caption/generate")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    fixture.send(request.body(Body::empty()).unwrap()).await
}

/// The request that follows.
async fn caption(fixture: &Fixture, origin: &str, key: &str) -> Answer {
    let mut request = raw(png());
    request.headers_mut().insert("origin", origin.parse().unwrap());
    request.headers_mut().insert("x-api-key", key.parse().unwrap());
    fixture.send(request).await
}

fn allowed(answer: &Answer) -> Option<&str> {
    answer.headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap())
}

fn vary(answer: &Answer) -> String {
    let values = answer.headers.get_all("vary").iter().map(|value| value.to_str().unwrap());
    values.collect::<Vec<_>>().join(", ").to_lowercase()
}

#[tokio::test]
async fn by_default_no_other_site_is_allowed() {
    let fixture = fixture(CorsOrigins::None);
    let answer = preflight(&fixture, SITE).await;
    answer.problem(405, "method_not_allowed");
    assert_eq!(allowed(&answer), None);
    let answer = caption(&fixture, SITE, "key").await;
    assert_eq!((answer.status, allowed(&answer)), (StatusCode::OK, None));
}

#[tokio::test]
async fn a_listed_site_passes_the_preflight() {
    let fixture = listed();
    for origin in [SITE, "http://localhost:3000"] {
        let answer = preflight(&fixture, origin).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(allowed(&answer), Some(origin));
        let methods = answer.header("access-control-allow-methods");
        assert!(methods.contains("GET") && methods.contains("POST"), "{methods}");
        let headers = answer.header("access-control-allow-headers");
        for header in ["authorization", "x-api-key", "content-type", "x-request-id", "accept"] {
            assert!(headers.split(',').any(|one| one.trim() == header), "{header}: {headers}");
        }
        assert_eq!(answer.header("access-control-max-age"), "7200");
        assert!(vary(&answer).contains("origin"));
        assert!(!answer.header("x-request-id").is_empty());
        // Cookies are not allowed.
        assert!(answer.headers.get("access-control-allow-credentials").is_none());
    }
}

#[tokio::test]
async fn a_listed_site_may_read_answers_and_errors() {
    let fixture = listed();
    for (key, status) in [("key", StatusCode::OK), ("wrong", StatusCode::FORBIDDEN)] {
        let answer = caption(&fixture, SITE, key).await;
        assert_eq!((answer.status, allowed(&answer)), (status, Some(SITE)));
        let exposed = answer.header("access-control-expose-headers");
        for header in ["x-request-id", "server-timing", "retry-after"] {
            assert!(exposed.split(',').any(|one| one.trim() == header), "{header}: {exposed}");
        }
        assert!(vary(&answer).contains("origin"));
    }
}

#[tokio::test]
async fn other_sites_are_not_named() {
    let fixture = listed();
    for origin in
        ["https://evil.example.com", "https://app.example.com.evil.com", "http://app.example.com"]
            .into_iter()
            .chain(["https://app.example.com:8443", "null", "https://app.example.co"])
    {
        assert_eq!(allowed(&preflight(&fixture, origin).await), None, "{origin}");
        assert_eq!(allowed(&caption(&fixture, origin, "key").await), None, "{origin}");
    }
}

#[tokio::test]
async fn a_star_allows_all_sites() {
    let fixture = fixture(CorsOrigins::Any);
    for origin in [SITE, "null", "http://anywhere"] {
        assert_eq!(allowed(&preflight(&fixture, origin).await), Some("*"));
        assert_eq!(allowed(&caption(&fixture, origin, "key").await), Some("*"));
    }
}

/// The answer of `/` also depends on `Accept`, and names both in `Vary`.
#[tokio::test]
async fn vary_names_everything_that_an_answer_depends_on() {
    let request = Request::get("/").header("origin", SITE).body(Body::empty()).unwrap();
    let vary = vary(&listed().send(request).await);
    assert!(vary.contains("accept") && vary.contains("origin"), "{vary}");
}

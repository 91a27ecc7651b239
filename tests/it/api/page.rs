//! The pages at `/`, `/gallery` and `/playground`, and their files. `tests/page` tests it in a browser.

use std::fs;
use std::path::Path;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use tempfile::TempDir;

use super::fixture::{Answer, Fixture};

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/page/assets");
const HEAD: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/page/assets/head.html"));
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

fn files() -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(ASSETS)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(path).unwrap();
            // All pages begin alike.
            let text = if name.ends_with(".html") { [HEAD, &text].concat() } else { text };
            (name, text)
        })
        .filter(|(name, _)| name != "head.html")
        .collect();
    files.sort();
    assert!(files.len() > 5);
    files
}

fn address(name: &str) -> String {
    match name {
        "index.html" => "/".to_owned(),
        "gallery.html" => "/gallery".to_owned(),
        "playground.html" => "/playground".to_owned(),
        _ => format!("/page/{name}"),
    }
}

/// A server with a library, which has all pages.
fn with_library() -> (Fixture, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::new();
    let store = cutline_library::open(&format!("sqlite:{}", folder.path().join("a.db").display()));
    fixture.state.keep_in(store.unwrap()).unwrap();
    (fixture, folder)
}

async fn get(fixture: &Fixture, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path).header("accept", BROWSER);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    fixture.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn every_file_is_served_with_its_type_and_can_be_cached() {
    let (fixture, _folder) = with_library();
    for (name, text) in files() {
        let path = address(&name);
        let link = "<nav aria-label=\"Pages\"><a href=\"gallery\">Gallery</a> \
                    <a href=\"playground\">Playground</a></nav>";
        let text = text.replace("<!-- gallery -->", link);
        let answer = get(&fixture, &path, &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}");
        assert!(answer.body == text.as_bytes(), "{name} is another file");
        if name.ends_with(".html") {
            assert!(text.starts_with("<!doctype html>"), "{name}");
            for once in
                ["<!doctype", "<html", "<head>", "<title>", "name=\"description\"", "</head>"]
            {
                assert_eq!(text.matches(once).count(), 1, "{name}: {once}");
            }
        }
        let extension = Path::new(&name).extension().unwrap().to_str().unwrap();
        let media_type = match extension {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => panic!("what is {name}?"),
        };
        assert_eq!(answer.header("content-type"), media_type, "{name}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin");
        assert_eq!(answer.header("cache-control"), "no-cache");

        let tag = answer.header("etag").to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 20, "{tag}");
        let again = get(&fixture, &path, &[("if-none-match", &tag)]).await;
        assert_eq!(again.status, StatusCode::NOT_MODIFIED, "{name}");
        assert!(again.body.is_empty());
        assert_eq!(again.header("etag"), tag);
        let other = get(&fixture, &path, &[("if-none-match", "\"of another version\"")]).await;
        assert_eq!(other.status, StatusCode::OK);
        let head = Request::head(&path).header("accept", BROWSER).body(Body::empty()).unwrap();
        let head = fixture.send(head).await;
        assert_eq!((head.status, head.header("etag")), (StatusCode::OK, tag.as_str()));
        assert!(head.body.is_empty());
    }
    for path in ["/page/", "/page/index.html", "/page/nothing.js", "/page/..%2Fmod.rs"] {
        get(&fixture, path, &[]).await.problem(404, "not_found");
    }
    let post = Request::post("/page/app.js").body(Body::empty()).unwrap();
    let problem = fixture.send(post).await.problem(405, "method_not_allowed");
    assert!(problem["detail"].as_str().unwrap().ends_with("use GET"), "{problem}");
}

#[tokio::test]
async fn browsers_get_the_page_and_programs_get_the_list() {
    let fixture = Fixture::new();
    let page = get(&fixture, "/", &[]).await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert_eq!(page.header("vary"), "accept");
    let list = fixture.get("/").await;
    assert_eq!(list.header("content-type"), "application/json");
    assert_eq!(list.header("vary"), "accept");
    assert_eq!(list.json()["name"], "cutline");
}

#[tokio::test]
async fn without_a_library_there_is_no_gallery() {
    let fixture = Fixture::new();
    get(&fixture, "/gallery", &[]).await.problem(404, "not_found");
    get(&fixture, "/playground", &[]).await.problem(404, "not_found");
    let page = get(&fixture, "/", &[]).await;
    assert!(!String::from_utf8_lossy(&page.body).contains("href=\"gallery\""));
}

#[tokio::test]
async fn the_pages_forbid_what_they_do_not_need() {
    let (fixture, _folder) = with_library();
    for path in ["/", "/gallery", "/playground"] {
        forbids(&get(&fixture, path, &[]).await);
    }
}

fn forbids(page: &Answer) {
    let policy: Vec<&str> = page.header("content-security-policy").split("; ").collect();
    for directive in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(&directive), "{directive} is not in {policy:?}");
    }
    assert!(
        !policy.iter().any(|directive| directive.contains("unsafe") || directive.contains('*'))
    );
    assert_eq!(page.header("x-frame-options"), "DENY");
    assert!(page.header("permissions-policy").contains("camera=()"));
}

/// A page with the files that it names.
fn with_files(page: &str) -> Vec<(String, String)> {
    let files = files();
    let (_, page) = files.iter().find(|(name, _)| name == page).unwrap().clone();
    let named = |(name, _): &(String, String)| page.contains(&format!("\"page/{name}\""));
    files.into_iter().filter(|file| file.1 == page || named(file)).collect()
}

#[test]
fn the_pages_are_small() {
    for (page, most) in
        [("index.html", 60_000), ("gallery.html", 110_000), ("playground.html", 60_000)]
    {
        let bytes: usize = with_files(page).iter().map(|(_, text)| text.len()).sum();
        assert!(bytes < most, "{page}: {bytes} bytes");
    }
}

#[test]
fn the_page_contacts_no_other_host() {
    for (name, text) in files() {
        // An XML namespace, not an address that is requested.
        let text = text.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for foreign in ["http:", "https:", "ws:", "wss:", "=\"//", "'//", "(//", "`//", "@import"] {
            assert!(!text.contains(foreign), "{name} has {foreign}");
        }
    }
}

#[test]
fn nothing_is_inline_and_no_text_becomes_markup() {
    for (name, text) in files() {
        let words: &[&str] = match name.rsplit('.').next().unwrap() {
            "js" => &[
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "srcdoc",
                "'style'",
                "localStorage",
                "document.cookie",
            ],
            "css" => &["url(", "expression("],
            _ => &["<style", " style=", "javascript:", "<script>", "<base", "<iframe"],
        };
        for word in words {
            assert!(!text.contains(word), "{name} has {word}");
        }
    }
    let pages: Vec<String> = files()
        .into_iter()
        .filter(|(name, _)| name.ends_with(".html"))
        .map(|(_, page)| page)
        .collect();
    for tag in pages.concat().split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
        let names = tag.split_whitespace().filter_map(|part| part.split_once('='));
        let inline = names.map(|(name, _)| name).any(|name| name.starts_with("on"));
        assert!(!inline, "a handler in <{tag}>");
        assert!(!tag.starts_with("script") || tag.contains(" src=\"page/"), "<{tag}>");
    }
}

/// One round trip: no file is discovered only after another one has loaded.
#[test]
fn the_pages_name_every_file_that_they_need() {
    let mut needed = Vec::new();
    for page in ["index.html", "gallery.html", "playground.html"] {
        let files = with_files(page);
        needed.extend(files.iter().map(|(name, _)| name.clone()));
        for (file, text) in files.iter().filter(|(name, _)| name.ends_with(".js")) {
            for import in text.lines().filter_map(|line| line.split_once(" from './")) {
                let name = import.1.trim_end_matches("';");
                assert!(
                    needed.iter().any(|one| one == name),
                    "{page} does not name {name} of {file}"
                );
            }
        }
    }
    let unused: Vec<String> =
        files().into_iter().map(|(name, _)| name).filter(|name| !needed.contains(name)).collect();
    assert_eq!(unused, [""; 0], "no page names these files");
}

//! The programs in `examples/` do what they say.

use std::path::Path;
use std::time::Duration;

use cutline::config::{Settings, Values, captioner_settings};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

#[allow(dead_code)]
#[path = "../../examples/caption_photo.rs"]
mod caption_photo;
#[allow(dead_code)]
#[path = "../../examples/embed_server.rs"]
mod embed_server;

const CAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/cat.jpg");
const CAPTION: &str = "a cat sitting on top of a table";

#[tokio::test]
async fn a_photo_is_captioned() {
    let settings = captioner_settings(&Values::default()).unwrap();
    assert_eq!(caption_photo::caption(settings, Path::new(CAT)).await.unwrap(), CAPTION);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_embedded_under_a_prefix_and_stops_gracefully() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let site = format!("http://{}", listener.local_addr().unwrap());
    let settings = Settings::new(&Values::default()).unwrap();
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(async move {
        let shutdown = async {
            let _ = stopped.await;
        };
        embed_server::serve(listener, settings, shutdown).await.map_err(|error| error.to_string())
    });

    assert!(get(&site, "/").await.1.contains("caption server"));
    let mut waited = Duration::ZERO;
    while get(&site, "/captions/health/ready").await.0 != 200 {
        assert!(waited < Duration::from_secs(120), "{:?}", get(&site, "/captions/health").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        waited += Duration::from_millis(50);
    }
    let url = format!("{site}/captions/caption/generate");
    let answer = tokio::task::spawn_blocking(move || {
        let photo = std::fs::read(CAT).unwrap();
        let mut answer = ureq::post(&url).content_type("image/jpeg").send(&photo[..]).unwrap();
        answer.body_mut().read_to_string().unwrap()
    });
    let answer: serde_json::Value = serde_json::from_str(&answer.await.unwrap()).unwrap();
    assert_eq!(answer["caption"], CAPTION);
    // Outside the prefix there is no caption server.
    assert_eq!(get(&site, "/health").await.0, 404);

    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

/// Status and body of a GET.
async fn get(site: &str, path: &str) -> (u16, String) {
    let url = format!("{site}{path}");
    let answer = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(&url).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    });
    answer.await.unwrap()
}

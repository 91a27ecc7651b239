//! Another file of routes, while requests are on their way.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::script::{Reply, ollama, openai};
use super::{BOX, Bench, CLOUD, FILE, key, main_model, status};
use crate::captioner::{Caption, Dispatch, Photo, Priority};
use crate::captioner::{CaptionParams, CaptionStream};
use crate::routing::Routes;
use crate::routing::dispatch::Dispatcher;
use cutline_route::Config;

/// Captions by the first route of the file that is in use.
fn start(routes: &Routes) -> CaptionStream {
    let main = main_model();
    let params = CaptionParams { model: Some("best".to_owned()), ..CaptionParams::default() };
    let route = Dispatcher(routes.live()).route(&params).unwrap();
    let photos = vec![Photo::from(super::photo(8, 8))];
    let params = CaptionParams { cache: crate::captioner::CachePolicy::Bypass, ..params };
    route.start(&main, photos, &params, Priority::Interactive).remove(0)
}

async fn ask(routes: &Routes) -> Caption {
    start(routes).end().await.unwrap()
}

fn replace(routes: &Routes, file: &str) -> cutline_error::Result<()> {
    let config = Config::parse(file).unwrap();
    let keys = vec![Some(key()); config.backends.len()];
    routes.replace(config, keys)
}

#[tokio::test(start_paused = true)]
async fn a_request_on_its_way_ends_as_it_began_and_the_next_one_goes_the_new_way() {
    let bench = Bench::new(FILE);
    let routes = bench.live();
    let line = "{\"message\":{\"content\":\"a slow square\"},\"done\":true}\n".to_owned();
    bench.script.next(BOX, Reply::Pieces(vec![String::new(), String::new(), line]));
    bench.script.usually(CLOUD, openai("a red square"));
    let mut slow = start(&routes);
    let waiting = tokio::spawn(async move { slow.end().await });
    sleep(Duration::from_secs(1)).await;
    // Without the backend that is at work.
    let only = FILE.replace(r#"[["box"], ["cloud"]]"#, r#"[["cloud"]]"#);
    let (head, tail) = only.split_once("[[backend]]\nname = \"cloud\"").unwrap();
    assert!(head.contains("llava"));
    replace(&routes, &format!("[[backend]]\nname = \"cloud\"{tail}")).unwrap();
    assert_eq!(routes.board().backends.len(), 1);
    let next = ask(&routes).await.routing.unwrap();
    assert_eq!((next.backend.as_str(), next.fallback), ("cloud", false));
    let slow = waiting.await.unwrap().unwrap();
    assert_eq!(slow.caption, "a slow square");
    assert_eq!(slow.routing.unwrap().backend, "box");
}

#[tokio::test(start_paused = true)]
async fn breakers_of_backends_that_are_the_same_keep_their_state() {
    let bench = Bench::new(FILE);
    let routes = bench.live();
    bench.script.usually(BOX, status(401));
    bench.script.usually(CLOUD, openai("a red square"));
    ask(&routes).await;
    let states = |routes: &Routes| -> Vec<&'static str> {
        routes.board().backends.iter().map(|backend| backend.state).collect()
    };
    assert_eq!(states(&routes), ["open", "closed"]);
    let cost = routes.board().backends[1].cost;
    assert!(cost.is_some());
    // In another order, and with another deadline of the route.
    let (box_, rest) = FILE.split_once("[[backend]]\nname = \"cloud\"").unwrap();
    let (cloud, route) = rest.split_once("[[route]]").unwrap();
    let turned =
        format!("[[backend]]\nname = \"cloud\"{cloud}\n{box_}\n[[route]]{route}\ndeadline_s = 9\n");
    replace(&routes, &turned).unwrap();
    assert_eq!(states(&routes), ["closed", "open"]);
    assert_eq!(routes.board().backends[0].cost, cost, "what it has cost stays as well");
    let seen = bench.script.seen(BOX).len();
    ask(&routes).await;
    assert_eq!(bench.script.seen(BOX).len(), seen, "it still rests");
    // Another model is another backend, and so is another key.
    replace(&routes, &turned.replace("llava", "llava:13b")).unwrap();
    assert_eq!(states(&routes), ["closed", "closed"]);
    ask(&routes).await;
    assert_eq!(states(&routes), ["closed", "open"]);
    let config = Config::parse(&turned.replace("llava", "llava:13b")).unwrap();
    routes.replace(config, vec![Some(key()), None]).unwrap();
    assert_eq!(states(&routes), ["closed", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_needs_another_model_changes_nothing() {
    let bench = Bench::new(FILE);
    let routes = bench.live();
    bench.script.usually(BOX, ollama("a red square"));
    let before = routes.board();
    let local = format!(
        "{FILE}\n[[backend]]\nname = \"large\"\nkind = \"local\"\nmodel = \"/models/large\"\n"
    );
    let error = replace(&routes, &local).unwrap_err();
    assert!(error.detail().contains("'large' is not loaded"), "{error}");
    assert_eq!(routes.board(), before);
    assert_eq!(ask(&routes).await.routing.unwrap().backend, "box");
}

/// Whoever looks after a backend that is away does so for the file that is in use.
#[tokio::test(start_paused = true)]
async fn an_absent_backend_is_found_again_after_another_file() {
    let bench = Bench::new(FILE);
    let routes = bench.live();
    bench.script.usually(BOX, Reply::Refuse);
    bench.script.usually(CLOUD, openai("a red square"));
    for _ in 0..40 {
        ask(&routes).await;
        sleep(Duration::from_secs(60)).await;
    }
    replace(&routes, &FILE.replace("base_ms = 100", "base_ms = 200")).unwrap();
    assert_eq!(routes.board().backends[0].state, "open");
    bench.script.usually(BOX, ollama("a red square"));
    let back = Instant::now();
    while ask(&routes).await.routing.unwrap().backend != "box" {
        assert!(back.elapsed() < Duration::from_secs(30), "it is not found again");
        sleep(Duration::from_secs(1)).await;
    }
}

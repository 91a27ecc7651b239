//! Answers of models elsewhere in the cache.

use std::sync::Arc;

use super::script::{Reply, ollama, openai};
use super::{BOX, Bench, CLOUD, FILE, main_model, photo, status};
use crate::captioner::{
    CachePolicy, CacheState, Caption, CaptionEvent, CaptionParams, CaptionStream, Photo, Priority,
    RecipeVersion, Style,
};
use crate::routing::drive::Job;
use cutline_prompts::{Content, Kind, Variables};

/// A photo of its own for each test, because all tests share a cache.
fn start(bench: &Bench, side: u32, params: CaptionParams) -> CaptionStream {
    let main = main_model();
    let job = Job {
        shared: Arc::clone(&bench.shared),
        main: main.clone(),
        route: 0,
        photo: Arc::new(Photo::from(photo(side, 9))),
        params: Arc::new(params),
        priority: Priority::Interactive,
    };
    CaptionStream::routed(&main, |writer| job.run(writer))
}

async fn ask(bench: &Bench, side: u32, params: CaptionParams) -> Caption {
    start(bench, side, params).end().await.unwrap()
}

fn with(cache: CachePolicy) -> CaptionParams {
    CaptionParams { cache, ..CaptionParams::default() }
}

/// A version of a prompt that says `text`.
fn version(name: &str, text: &str) -> CaptionParams {
    let recipe = RecipeVersion {
        id: 1,
        name: name.to_owned(),
        digest: text.to_owned(),
        content: Content::new(Kind::Instruction, text),
        experiment: None,
    };
    let params = CaptionParams { template: Some(name.to_owned()), ..CaptionParams::default() };
    params.with_recipe(recipe, Variables::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_given_again_for_nothing() {
    let bench = Bench::new(&FILE.replace(r#"[["box"], ["cloud"]]"#, r#"[["cloud"]]"#));
    bench.script.usually(CLOUD, openai("a red square"));
    let first = ask(&bench, 11, CaptionParams::default()).await;
    assert_eq!(first.cache, CacheState::Miss);
    let again = ask(&bench, 11, CaptionParams::default()).await;
    assert_eq!((again.cache, &again.caption), (CacheState::Hit, &first.caption));
    assert_eq!((&again.model, &again.image), (&first.model, &first.image));
    assert_eq!(again.colors, first.colors);
    let routing = again.routing.unwrap();
    assert_eq!((routing.backend.as_str(), routing.attempts), ("cloud", 0));
    assert_eq!((routing.cost, routing.sent_to), (Some(0.0), Vec::new()));
    assert_eq!(bench.script.seen(CLOUD).len(), 1);
    let board = bench.board().backends.remove(1);
    assert_eq!((board.answered, board.in_flight), (1, 0));
    assert!((board.cost.unwrap() - 0.52).abs() < 1e-9, "only the first one was paid for");
    // On a stream, the whole comes at once.
    let mut stream = start(&bench, 11, CaptionParams::default());
    stream.accepted().await.unwrap();
    assert_eq!(stream.answered_by(), Some(("cloud".to_owned(), 0)));
    assert!(matches!(stream.next().await.unwrap(), CaptionEvent::Done(_)));
    assert_eq!(bench.script.seen(CLOUD).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn whatever_an_answer_depends_on_makes_it_another() {
    let bench = Bench::new(&FILE.replace(r#"[["box"], ["cloud"]]"#, r#"[["box"]]"#));
    bench.script.usually(BOX, ollama("a red square"));
    let mut asked = 0;
    for params in [
        CaptionParams::default(),
        CaptionParams { style: Style::Title, ..CaptionParams::default() },
        CaptionParams { max_new_tokens: 400, ..CaptionParams::default() },
        CaptionParams { prompt: Some("here is".to_owned()), ..CaptionParams::default() },
        CaptionParams { do_sample: true, seed: Some(1), ..CaptionParams::default() },
        CaptionParams { do_sample: true, seed: Some(2), ..CaptionParams::default() },
        version("tell:1", "Tell me."),
        version("tell:2", "Tell me."),
        version("tell:3", "Tell me more."),
    ] {
        // Ollama's stream in one piece is also its whole answer.
        let reply = "{\"message\":{\"content\":\"a red square\"},\"done\":true}".to_owned();
        bench.script.usually(BOX, Reply::Status(200, "", reply));
        asked += 1;
        for cache in [CacheState::Miss, CacheState::Hit] {
            let caption = ask(&bench, 12, params.clone()).await;
            assert_eq!((caption.cache, bench.script.seen(BOX).len()), (cache, asked), "{params:?}");
        }
    }
    // Another photo, sampling without a seed, and what the caller says about the cache.
    ask(&bench, 13, CaptionParams::default()).await;
    let sampled = CaptionParams { do_sample: true, ..CaptionParams::default() };
    ask(&bench, 12, sampled.clone()).await;
    ask(&bench, 12, sampled).await;
    ask(&bench, 12, with(CachePolicy::Bypass)).await;
    assert_eq!(bench.script.seen(BOX).len(), asked + 4);
    bench.script.usually(BOX, ollama("a crimson square"));
    ask(&bench, 12, with(CachePolicy::Bypass)).await;
    assert_eq!(ask(&bench, 12, CaptionParams::default()).await.caption, "a red square");
    ask(&bench, 12, with(CachePolicy::Refresh)).await;
    assert_eq!(ask(&bench, 12, CaptionParams::default()).await.caption, "a crimson square");
    // The same name at another address, and another model there.
    for (from, to) in [("http://localhost", "http://localhost:81"), ("llava", "llava:13b")] {
        let other = FILE.replace(r#"[["box"], ["cloud"]]"#, r#"[["box"]]"#).replace(from, to);
        let other = Bench::new(&other);
        other.script.usually(BOX, ollama("a square"));
        assert_eq!(ask(&other, 12, CaptionParams::default()).await.caption, "a square", "{to}");
    }
}

/// The first tier that has an answer gives it, even if its backend is ill; later tiers have to wait for
/// their turn.
#[tokio::test(start_paused = true)]
async fn cached_answers_keep_the_order_of_the_tiers() {
    let bench = Bench::new(FILE);
    bench.script.usually(CLOUD, openai("by the cloud"));
    bench.script.next(BOX, status(503));
    assert_eq!(ask(&bench, 14, CaptionParams::default()).await.caption, "by the cloud");
    // The box has not been asked for this photo with success; it comes first, and fails again.
    bench.script.next(BOX, status(503));
    let caption = ask(&bench, 14, CaptionParams::default()).await;
    assert_eq!((caption.cache, caption.caption.as_str()), (CacheState::Hit, "by the cloud"));
    let routing = caption.routing.unwrap();
    assert_eq!((routing.attempts, routing.reason.as_deref()), (1, Some("server_error")));
    assert_eq!((bench.script.seen(BOX).len(), bench.script.seen(CLOUD).len()), (2, 1));
    assert_eq!(bench.board().backends[1].in_flight, 0);
    bench.script.usually(BOX, ollama("by the box"));
    assert_eq!(ask(&bench, 14, CaptionParams::default()).await.caption, "by the box");
    bench.script.usually(BOX, status(401));
    ask(&bench, 15, CaptionParams::default()).await;
    assert_eq!(bench.state(0), "open");
    let caption = ask(&bench, 14, CaptionParams::default()).await;
    assert_eq!((caption.cache, caption.caption.as_str()), (CacheState::Hit, "by the box"));
}

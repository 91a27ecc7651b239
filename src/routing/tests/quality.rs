//! A route that asks a model elsewhere when the one in this process is not sure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::script::{Reply, Script, openai};
use super::{Bench, CLOUD, main_model, photo, status};
use crate::captioner::{
    CacheState, Caption, CaptionEvent, CaptionParams, CaptionStream, Photo, Priority,
};
use crate::metrics::{Metrics, ServerSnapshot};
use crate::routing::drive::Job;
use crate::routing::shared::{Shared, Speaker};
use crate::routing::upstream::Upstream;
use cutline_route::Config;

const FILE: &str = r#"
[[backend]]
name = "small"
kind = "local"
price = { per_image = 0.25 }

[[backend]]
name = "cloud"
kind = "openai"
base_url = "http://cloud.example/v1"
model = "vision-mini"
price = { per_1k_in = 0.5, per_1k_out = 2.0 }

[[route]]
name = "careful"
backends = [["small"], ["cloud"]]
allow_remote = true
retry = { attempts = 2, base_ms = 100, cap_ms = 1000 }
escalate_below = LEAST
"#;

/// A route on which the answer of the model in this process counts if its confidence is at least `least`.
/// The model works in real time, so its answer is made before the clock stops.
async fn bench(side: u32, least: &str) -> (Bench, f32) {
    let main = main_model();
    let own = main.caption(Photo::from(photo(side, 10)), CaptionParams::default()).await.unwrap();
    tokio::time::pause();
    let (script, metrics) = (Script::default(), Metrics::new());
    let config = Config::parse(&FILE.replace("LEAST", least)).unwrap();
    let cloud = Upstream::new(&config.backends[1], None, Arc::new(script.clone())).unwrap();
    let speakers = vec![Speaker::Main, Speaker::Upstream(cloud)];
    let shared = Shared::new(config, speakers, Duration::from_secs(57), metrics.clone());
    (Bench { script, shared, metrics }, own.captions[0].confidence)
}

fn start(bench: &Bench, side: u32) -> CaptionStream {
    let main = main_model();
    let job = Job {
        shared: Arc::clone(&bench.shared),
        main: main.clone(),
        route: 0,
        photo: Arc::new(Photo::from(photo(side, 10))),
        params: Arc::new(CaptionParams::default()),
        priority: Priority::Interactive,
    };
    CaptionStream::routed(&main, |writer| job.run(writer))
}

async fn ask(bench: &Bench, side: u32) -> Caption {
    start(bench, side).end().await.unwrap()
}

#[tokio::test]
async fn an_unsure_answer_is_asked_for_again_elsewhere() {
    let (bench, confidence) = bench(21, "1.0").await;
    assert!(confidence < 1.0);
    bench.script.usually(CLOUD, openai("a red square"));
    let mut stream = start(&bench, 21);
    // Nothing of the unsure answer reaches the client.
    let first = stream.next().await.unwrap();
    let CaptionEvent::Done(caption) = first else { panic!("{first:?}") };
    assert_eq!((caption.caption.as_str(), caption.model.as_str()), ("a red square", "big"));
    let routing = caption.routing.unwrap();
    assert_eq!((routing.backend.as_str(), routing.attempts, routing.fallback), ("cloud", 2, true));
    assert_eq!(routing.reason.as_deref(), Some("low_confidence"));
    assert_eq!((routing.sent_to.as_slice(), routing.cost), (&["cloud".to_owned()][..], Some(0.52)));
    assert_eq!(bench.board().backends[0].failed, 0, "an unsure answer is no failure");
    // The second time both are in the cache, and nothing is sent.
    let again = ask(&bench, 21).await;
    assert_eq!((again.cache, again.caption.as_str()), (CacheState::Hit, "a red square"));
    assert_eq!(again.routing.unwrap().reason.as_deref(), Some("low_confidence"));
    assert_eq!(bench.script.seen(CLOUD).len(), 1);
    let text = bench.metrics.render(ServerSnapshot::default());
    assert!(text.contains(r#"cutline_backend_cost_total{backend="cloud"} 0.52"#), "{text}");
}

#[tokio::test]
async fn a_sure_answer_is_final_and_leaves_the_photo_here() {
    let (bench, _) = bench(22, "0.0").await;
    bench.script.usually(CLOUD, openai("a red square"));
    let caption = ask(&bench, 22).await;
    assert!(caption.caption != "a red square" && caption.captions[0].confidence > 0.0);
    let routing = caption.routing.unwrap();
    assert_eq!((routing.backend.as_str(), routing.attempts, routing.reason), ("small", 1, None));
    assert!(bench.script.seen(CLOUD).is_empty());
}

#[tokio::test]
async fn if_nobody_does_better_the_first_answer_counts_within_the_deadline() {
    for (side, reply) in [(23, status(500)), (24, Reply::Refuse), (25, Reply::Hang)] {
        let (bench, _) = bench(side, "1.0").await;
        bench.script.usually(CLOUD, reply.clone());
        let begin = Instant::now();
        let caption = ask(&bench, side).await;
        assert!(begin.elapsed() < Duration::from_secs(57), "{reply:?}: {:?}", begin.elapsed());
        let routing = caption.routing.unwrap();
        assert_eq!(routing.backend, "small", "{reply:?}");
        let sent = if matches!(reply, Reply::Refuse) { 0 } else { 1 };
        assert_eq!(routing.sent_to.len(), sent, "{reply:?}");
        assert_eq!(routing.cost, Some(0.0), "it was in the cache");
        tokio::time::resume();
    }
}

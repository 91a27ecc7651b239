//! On the CPU kernels a caption is the same bit for bit: alone, in a batch, started again after a
//! failure, and from a stored encoded image. For candle see `parity/candle`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cutline::engine::local::LocalEngine;
use cutline::engine::source::{self, ModelSource};
use cutline::engine::{
    self, EncodedImage, Engine, EngineOptions, Event, GenerationParams, HubOptions, ImageInput,
    Job, JobId, PixelValues, Precision, Sequence, bench,
};
use cutline::error::{Error, Result};
use cutline::metrics::Metrics;
use cutline::scheduler::{
    Handle, JobEvent, JobRequest, Priority, SchedulerOptions, Submission, VisionOrder,
};

#[derive(Debug, Clone, Copy)]
enum Mishap {
    Error,
    Panic,
}

/// A real engine that fails in the planned steps, counted from the last plan on.
struct Faulty {
    engine: LocalEngine,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Default)]
struct Plan {
    step: usize,
    mishaps: HashMap<usize, Mishap>,
}

impl Engine for Faulty {
    fn encode(&mut self, images: &[Arc<PixelValues>]) -> Result<Vec<EncodedImage>> {
        self.engine.encode(images)
    }

    fn start(&mut self, job: Job) -> Result<()> {
        self.engine.start(job)
    }

    fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let mishap = {
            let mut plan = self.plan.lock().unwrap();
            plan.step += 1;
            let step = plan.step;
            plan.mishaps.remove(&step)
        };
        let Some(mishap) = mishap else { return self.engine.step(events) };
        // The state advances, but its events are lost, so nobody may use the state afterwards.
        self.engine.step(&mut Vec::new())?;
        match mishap {
            Mishap::Error => Err(Error::internal("it fails as planned")),
            Mishap::Panic => panic!("it panics as planned"),
        }
    }

    fn cancel(&mut self, job: JobId) {
        self.engine.cancel(job);
    }

    fn reset(&mut self) {
        self.engine.reset();
    }
}

fn load(model: &str, precision: Precision) -> LocalEngine {
    let model = match model {
        "embedded" => ModelSource::Embedded,
        name => {
            let folder = format!("{}/tests/goldens/{name}", env!("CARGO_MANIFEST_DIR"));
            folder.parse().unwrap()
        }
    };
    let files = source::open(&model, &HubOptions::default()).unwrap();
    engine::load(&files, EngineOptions { precision, ..EngineOptions::default() }).unwrap()
}

fn works(side: usize) -> Vec<JobRequest> {
    let greedy = GenerationParams { max_new_tokens: 12, min_new_tokens: 5, ..Default::default() };
    let sampled = GenerationParams {
        do_sample: true,
        seed: Some(3),
        num_return_sequences: 2,
        ..greedy.clone()
    };
    let beams = GenerationParams { num_beams: 3, num_return_sequences: 2, ..greedy.clone() };
    let all = [(greedy.clone(), vec![]), (beams, vec![7, 8]), (sampled, vec![]), (greedy, vec![9])];
    (0..)
        .zip(all)
        .map(|(seed, (params, prompt))| JobRequest {
            image: bench::image(seed, side).into(),
            prompt,
            task: params.into(),
        })
        .collect()
}

#[derive(Debug, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    sequences: Vec<Sequence>,
}

fn submit(handle: &Handle, works: Vec<JobRequest>) -> Vec<Submission> {
    let places = handle.reserve(works.len(), Priority::Bulk).unwrap();
    places.into_iter().zip(works).map(|(place, work)| place.submit(work).unwrap()).collect()
}

/// The result of a job, and the encoded image if the vision tower ran for it.
async fn outcome(mut job: Submission) -> (Outcome, Option<Arc<EncodedImage>>) {
    let (mut tokens, mut image) = (Vec::new(), None);
    loop {
        match job.next().await.expect("an end") {
            JobEvent::Started { .. } => {}
            JobEvent::Encoded(encoded) => assert!(image.replace(encoded).is_none(), "sent once"),
            JobEvent::Token(token) => tokens.push(token),
            JobEvent::Done { sequences, .. } => return (Outcome { tokens, sequences }, image),
            JobEvent::Failed(error) => panic!("{error}"),
            JobEvent::Compared { .. } => panic!("a job that writes was compared"),
        }
    }
}

async fn outcomes(handle: &Handle, works: Vec<JobRequest>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for job in submit(handle, works) {
        outcomes.push(outcome(job).await.0);
    }
    outcomes
}

async fn check(name: &str, precision: Precision) {
    let what = format!("{name}, {precision}");
    let engine = load(name, precision);
    let works = works(engine.info().image_size);
    let plan = Arc::<Mutex<Plan>>::default();
    let options = SchedulerOptions {
        max_batch_size: 16,
        queue_capacity: 16,
        vision_order: VisionOrder::AllFirst,
        metrics: Metrics::new(),
        vision_batch: 1,
    };
    let engine = Faulty { engine, plan: Arc::clone(&plan) };
    let handle = Handle::spawn(Box::new(engine), options).unwrap();

    let (mut alone, mut kept) = (Vec::new(), Vec::new());
    for work in &works {
        for job in submit(&handle, vec![work.clone()]) {
            let (outcome, image) = outcome(job).await;
            let image = image.expect("the vision tower ran");
            assert!(image.bytes() > 0);
            alone.push(outcome);
            kept.push(JobRequest { image: ImageInput::Encoded(image), ..work.clone() });
        }
    }
    let encoded = handle.status().encoded;
    assert_eq!(encoded, works.len() as u64);
    assert_eq!(outcomes(&handle, works.clone()).await, alone, "in a batch: {what}");
    assert_eq!(handle.status().encoded, 2 * encoded);

    assert_eq!(outcomes(&handle, kept.clone()).await, alone, "from kept images: {what}");
    assert_eq!(handle.status().encoded, 2 * encoded, "the vision tower did not run: {what}");

    // In the third step all of them have written two tokens.
    for mishap in [Mishap::Error, Mishap::Panic] {
        let failures = handle.status().failures;
        *plan.lock().unwrap() = Plan { step: 0, mishaps: HashMap::from([(3, mishap)]) };
        let jobs = submit(&handle, works.iter().chain(&kept).cloned().collect());
        let mut again = Vec::new();
        for job in jobs {
            again.push(outcome(job).await.0);
        }
        assert_eq!(again[..4], alone, "after {mishap:?}: {what}");
        assert_eq!(again[4..], alone, "kept, and after {mishap:?}: {what}");
        assert_eq!(handle.status().failures, failures + 1, "{mishap:?}: {what}");
    }
    assert_eq!(handle.status().encoded, 4 * encoded, "no image was encoded twice: {what}");
}

#[tokio::test]
async fn tiny_captions_are_the_same_alone_batched_restarted_and_from_a_kept_image() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        for name in ["tied", "untied"] {
            check(name, precision).await;
        }
    }
}

#[cfg(feature = "embedded-model")]
#[tokio::test]
async fn embedded_captions_are_the_same_alone_batched_restarted_and_from_a_kept_image() {
    for precision in [Precision::Auto, Precision::Int8] {
        check("embedded", precision).await;
    }
}

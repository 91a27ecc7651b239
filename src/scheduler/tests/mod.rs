//! The scheduler with a scripted engine: which jobs are in the batch, and which are dropped. `recovery`
//! tests failures of the engine, `vision` the encoding of several images at once.

mod recovery;
mod vision;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Handle, JobEvent, JobRequest, Priority, SchedulerOptions, Submission, VisionOrder};
use crate::engine::fake::{Call, FakeEngine, Mishap, Script};
use crate::engine::{GenerationParams, JobId, PixelValues, Sequence, Task};
use crate::metrics::Metrics;
use cutline_error::{Error, ErrorKind};

fn options(max_batch_size: usize, queue_capacity: usize) -> SchedulerOptions {
    // With AllFirst the batch depends on nothing but its size.
    let vision_order = VisionOrder::AllFirst;
    let metrics = Metrics::new();
    SchedulerOptions { max_batch_size, queue_capacity, vision_order, vision_batch: 1, metrics }
}

fn spawn_with(script: &Arc<Script>, options: SchedulerOptions) -> Handle {
    Handle::spawn(FakeEngine::boxed(script), options).unwrap()
}

fn spawn(script: &Arc<Script>, max_batch_size: usize, queue_capacity: usize) -> Handle {
    spawn_with(script, options(max_batch_size, queue_capacity))
}

/// A request for an image whose width serves as its name.
fn request(image: usize, tokens: usize, beams: usize) -> JobRequest {
    let pixels = PixelValues { data: Vec::new(), width: image, height: 0 };
    let params = GenerationParams {
        max_new_tokens: tokens,
        num_beams: beams,
        ..GenerationParams::default()
    };
    JobRequest { image: pixels.into(), prompt: Vec::new(), task: params.into() }
}

fn submit_request(handle: &Handle, request: JobRequest) -> Result<Submission, Error> {
    handle.reserve(1, Priority::Interactive)?.pop().unwrap().submit(request)
}

fn submit(handle: &Handle, tokens: usize, beams: usize) -> Result<Submission, Error> {
    submit_request(handle, request(0, tokens, beams))
}

/// All events of a job.
fn events(mut submission: Submission) -> Vec<JobEvent> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut events = Vec::new();
        while let Some(event) = submission.next().await {
            events.push(event);
        }
        events
    })
}

/// The streamed tokens of a job, and its result.
fn outcome(submission: Submission) -> (Vec<u32>, Option<Result<Vec<Sequence>, Error>>) {
    let (mut tokens, mut end) = (Vec::new(), None);
    for event in events(submission) {
        assert!(end.is_none(), "nothing follows the end: {event:?}");
        match event {
            JobEvent::Started { .. } | JobEvent::Encoded(_) => {}
            JobEvent::Token(token) => tokens.push(token),
            JobEvent::Done { sequences, .. } => end = Some(Ok(sequences)),
            JobEvent::Failed(error) => end = Some(Err(error)),
            JobEvent::Compared { .. } => panic!("nothing is compared: {event:?}"),
        }
    }
    (tokens, end)
}

fn failure(submission: Submission) -> Error {
    outcome(submission).1.expect("an end").expect_err("a failure")
}

fn succeeds(submission: Submission, tokens: usize) {
    let (streamed, end) = outcome(submission);
    let sequences = end.expect("an end").expect("success");
    assert_eq!(streamed.len(), tokens);
    assert_eq!(sequences[0].ids, streamed, "the result equals the streamed tokens");
}

fn step(ids: &[u64]) -> Call {
    Call::Step(ids.iter().copied().map(JobId).collect())
}

#[test]
fn jobs_that_arrive_while_the_model_is_busy_join_between_steps() {
    let script = Script::gated();
    let handle = spawn(&script, 8, 8);
    let first = submit(&handle, 3, 1).unwrap();
    script.wait_for(&step(&[0])); // a single job does not wait for others
    let second = submit(&handle, 3, 1).unwrap();
    script.open();
    succeeds(first, 3);
    succeeds(second, 3);
    let calls = script.calls();
    assert!(calls.contains(&step(&[0, 1])), "{calls:?}");
    assert!(calls.contains(&step(&[1])), "the first job left the batch: {calls:?}");
}

#[test]
fn the_batch_never_exceeds_its_row_limit() {
    let script = Script::gated();
    let handle = spawn(&script, 4, 8);
    let wide = submit(&handle, 2, 3).unwrap();
    script.wait_for(&step(&[0]));
    let too_wide = submit(&handle, 1, 2).unwrap();
    let narrow = submit(&handle, 1, 1).unwrap();
    script.open();
    succeeds(wide, 2);
    succeeds(too_wide, 1);
    succeeds(narrow, 1);
    let calls = script.calls();
    assert!(!calls.contains(&step(&[0, 1])), "3 + 2 rows are more than 4: {calls:?}");
    assert!(!calls.contains(&step(&[0, 2])), "no job overtakes: {calls:?}");
}

#[test]
fn a_job_whose_caller_left_costs_nothing_more() {
    let script = Script::gated();
    let handle = spawn(&script, 1, 8);
    let running = submit(&handle, 60, 1).unwrap();
    script.wait_for(&step(&[0]));
    let waiting = submit(&handle, 60, 1).unwrap();
    let staying = submit(&handle, 2, 1).unwrap();
    drop(waiting);
    drop(running);
    script.open();
    succeeds(staying, 2);
    let calls = script.calls();
    assert!(!calls.contains(&Call::Start(JobId(1))), "its caller left while it waited: {calls:?}");
    assert!(calls.contains(&Call::Cancel(JobId(0))), "its caller left while it ran: {calls:?}");
    let steps_of_the_first = calls.iter().filter(|call| **call == step(&[0])).count();
    assert_eq!(steps_of_the_first, 1, "only the step in progress");
}

#[test]
fn a_full_queue_says_when_to_try_again_and_queues_nothing() {
    let script = Script::gated();
    let handle = spawn(&script, 1, 1);
    let running = submit(&handle, 1, 1).unwrap();
    script.wait_for(&step(&[0]));
    let waiting = submit(&handle, 1, 1).unwrap();
    let error = submit(&handle, 1, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    assert!(error.retry_after().is_some());
    let status = handle.status();
    assert_eq!((status.queue_depth, status.in_flight, status.accepting), (1, 1, false));
    script.open();
    succeeds(running, 1);
    succeeds(waiting, 1);
}

#[test]
fn closing_finishes_accepted_jobs_and_refuses_new_ones() {
    let script = Script::gated();
    let handle = spawn(&script, 1, 8);
    let running = submit(&handle, 2, 1).unwrap();
    let waiting = submit(&handle, 2, 1).unwrap();
    handle.close();
    assert_eq!(submit(&handle, 1, 1).unwrap_err().kind(), ErrorKind::ShuttingDown);
    script.open();
    succeeds(running, 2);
    succeeds(waiting, 2);
    drop(handle); // joins the thread
    assert!(Arc::strong_count(&script) == 1, "the engine was dropped with its thread");
}

#[test]
fn dropping_the_last_handle_joins_the_thread() {
    let script = Script::free();
    let handle = spawn(&script, 1, 8);
    let clone = handle.clone();
    drop(handle);
    succeeds(submit(&clone, 1, 1).unwrap(), 1);
    drop(clone);
    assert_eq!(Arc::strong_count(&script), 1);
}

#[test]
fn slots_are_reserved_before_there_is_an_image() {
    let script = Script::gated();
    let handle = spawn(&script, 1, 4);
    let mut slots = handle.reserve(3, Priority::Bulk).unwrap();
    assert_eq!(handle.reserve(2, Priority::Interactive).unwrap_err().kind(), ErrorKind::QueueFull);
    let status = handle.status();
    assert_eq!((status.queue_depth, status.reserved), (0, 3), "all or none");
    drop(slots.pop());
    assert_eq!(handle.status().reserved, 2, "a dropped slot is free again");
    // A reserved slot is served even while the scheduler stops.
    handle.close();
    assert_eq!(submit(&handle, 1, 1).unwrap_err().kind(), ErrorKind::ShuttingDown);
    let submission = slots.pop().unwrap().submit(request(0, 2, 1)).unwrap();
    script.open();
    succeeds(submission, 2);
    drop(handle);
    let submission = slots.pop().unwrap().submit(request(0, 2, 1)).unwrap();
    succeeds(submission, 2);
}

#[test]
fn a_bad_parameter_frees_the_slot() {
    let handle = spawn(&Script::free(), 1, 1);
    assert_eq!(submit(&handle, 0, 1).unwrap_err().field(), Some("max_new_tokens"));
    assert_eq!(handle.status().reserved, 0);
    succeeds(submit(&handle, 1, 1).unwrap(), 1);
}

#[test]
fn a_request_larger_than_the_queue_is_refused_with_a_remedy() {
    let handle = spawn(&Script::free(), 1, 4);
    let error = handle.reserve(5, Priority::Bulk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    assert!(error.detail().contains("QUEUE_CAPACITY"), "{error}");
}

#[test]
fn interactive_jobs_go_first_but_do_not_starve_bulk_jobs() {
    let script = Script::gated();
    let handle = spawn(&script, 1, 64);
    let first = submit(&handle, 1, 1).unwrap();
    script.wait_for(&step(&[0]));
    let put = |priority| {
        let slot = handle.reserve(1, priority).unwrap().pop().unwrap();
        slot.submit(request(0, 1, 1)).unwrap()
    };
    let mut jobs = vec![first];
    jobs.extend((0..2).map(|_| put(Priority::Bulk))); // 1 and 2
    jobs.extend((0..7).map(|_| put(Priority::Interactive))); // 3 to 9
    script.open();
    jobs.into_iter().for_each(|job| succeeds(job, 1));
    let order: Vec<u64> = script
        .calls()
        .into_iter()
        .filter_map(|call| if let Call::Start(id) = call { Some(id.0) } else { None })
        .collect();
    assert_eq!(order, [0, 3, 4, 5, 6, 1, 7, 8, 9, 2]);
}

#[test]
fn an_encoded_image_is_sent_once_and_skips_the_vision_tower_later() {
    let script = Script::free();
    let handle = spawn(&script, 1, 4);
    let first = events(submit_request(&handle, request(7, 2, 1)).unwrap());
    let [JobEvent::Started { .. }, JobEvent::Encoded(image), JobEvent::Token(0), rest @ ..] =
        first.as_slice()
    else {
        panic!("{first:?}")
    };
    assert!(matches!(rest, [JobEvent::Token(1), JobEvent::Done { batch_size: 1, .. }]));
    assert_eq!(image.bytes(), 8);
    let again = JobRequest { image: Arc::clone(image).into(), ..request(0, 2, 1) };
    let second = events(submit_request(&handle, again).unwrap());
    assert!(!second.iter().any(|event| matches!(event, JobEvent::Encoded(_))), "{second:?}");
    assert!(matches!(second.last(), Some(JobEvent::Done { .. })));
    assert_eq!(script.count(&Call::Encode(7)), 1);
    assert_eq!((handle.status().encoded, handle.status().finished), (1, 2));
}

/// The decode steps of a batch of at most four when `later` images arrive during the first step. Each
/// caption has four tokens.
fn steps(vision_order: VisionOrder, later: usize) -> Vec<Call> {
    let script = Script::gated();
    let handle = spawn_with(&script, SchedulerOptions { vision_order, ..options(4, 16) });
    let mut jobs = vec![submit(&handle, 4, 1).unwrap()];
    script.wait_for(&step(&[0]));
    jobs.extend((0..later).map(|_| submit(&handle, 4, 1).unwrap()));
    script.open();
    jobs.into_iter().for_each(|job| succeeds(job, 4));
    script.calls().into_iter().filter(|call| matches!(call, Call::Step(_))).collect()
}

#[test]
fn few_images_are_encoded_before_the_next_step_unless_many_wait() {
    let pair = step(&[0, 1]);
    let few = steps(VisionOrder::ByBacklog, 2);
    assert_eq!(few[..5], [step(&[0]), pair.clone(), pair.clone(), pair, step(&[1, 2])]);
    let many = steps(VisionOrder::ByBacklog, 12);
    assert_eq!(many[..2], [step(&[0]), step(&[0, 1, 2, 3])]);
}

#[test]
fn all_images_can_be_encoded_before_the_next_step() {
    let whole = step(&[0, 1, 2]);
    let all_first = steps(VisionOrder::AllFirst, 2);
    assert_eq!(all_first[..3], [step(&[0]), whole.clone(), whole]);
}

#[tokio::test]
async fn dropping_the_last_handle_does_not_block_a_runtime_thread() {
    let script = Script::gated();
    let handle = spawn(&script, 1, 8);
    let running = submit(&handle, 1, 1).unwrap();
    script.wait_for(&step(&[0]));
    drop(handle); // The step cannot end before the gate opens: a join here would never return.
    assert!(Arc::strong_count(&script) > 1, "the model thread still runs");
    script.open();
    let deadline = Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&script) > 1 {
        assert!(Instant::now() < deadline, "the model thread does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(running);
}

#[test]
fn waits_are_estimated_from_the_present_speed() {
    let script = Script::gated();
    let handle = spawn(&script, 1, 2);
    assert_eq!(handle.status().estimated_wait, Duration::ZERO);
    let running = submit(&handle, 2, 1).unwrap();
    script.wait_for(&step(&[0]));
    std::thread::sleep(Duration::from_millis(30));
    script.let_step(1);
    script.wait_until(|calls| calls.iter().filter(|call| **call == step(&[0])).count() == 2);
    let waiting = [submit(&handle, 1, 1).unwrap(), submit(&handle, 1, 1).unwrap()];
    // An unfinished image takes at least 30 ms. Two images wait, and one has to leave the model.
    let wait = handle.status().estimated_wait;
    assert!(wait >= Duration::from_millis(90), "{wait:?}");
    let after = submit(&handle, 1, 1).unwrap_err().retry_after().unwrap();
    assert!(after >= Duration::from_millis(30) && after < wait, "{after:?}");
    script.open();
    succeeds(running, 2);
    waiting.into_iter().for_each(|job| succeeds(job, 1));
    assert!(handle.status().images_per_second > 0.0);
}

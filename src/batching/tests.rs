//! The worker with a scripted engine: who is in the batch, who is let go, and what a failure costs.

use std::sync::Arc;

use super::{Handle, JobEvent, Submission};
use crate::engine::fake::{Call, FakeEngine, Mishap, Script};
use crate::engine::{GenerationParams, JobId, PixelValues, Sequence};
use crate::error::{Error, ErrorKind};

fn submit(handle: &Handle, tokens: usize, beams: usize) -> Result<Submission, Error> {
    let pixels = Arc::new(PixelValues { data: Vec::new(), width: 0, height: 0 });
    let params = GenerationParams {
        max_new_tokens: tokens,
        num_beams: beams,
        ..GenerationParams::default()
    };
    handle.submit(pixels, Vec::new(), params)
}

/// The end of a job, and the tokens that came before it.
fn outcome(mut submission: Submission) -> (Vec<u32>, Option<Result<Vec<Sequence>, Error>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut tokens = Vec::new();
        while let Some(event) = submission.next().await {
            match event {
                JobEvent::Started { .. } => {}
                JobEvent::Token(token) => tokens.push(token),
                JobEvent::Done { sequences, .. } => return (tokens, Some(Ok(sequences))),
                JobEvent::Failed(error) => return (tokens, Some(Err(error))),
            }
        }
        (tokens, None)
    })
}

fn succeeds(submission: Submission, tokens: usize) {
    let (streamed, end) = outcome(submission);
    let sequences = end.expect("an end").expect("success");
    assert_eq!(streamed.len(), tokens);
    assert_eq!(sequences[0].ids, streamed, "the answer is the fold of the stream");
}

fn step(ids: &[u64]) -> Call {
    Call::Step(ids.iter().copied().map(JobId).collect())
}

#[test]
fn what_arrives_while_the_model_is_busy_joins_between_steps() {
    let script = Script::gated();
    let handle = Handle::spawn(FakeEngine::boxed(&script), 8, 8).unwrap();
    let first = submit(&handle, 3, 1).unwrap();
    script.wait_for(&step(&[0])); // alone: it does not wait for company
    let second = submit(&handle, 3, 1).unwrap();
    script.open();
    succeeds(first, 3);
    succeeds(second, 3);
    let calls = script.calls();
    assert!(calls.contains(&step(&[0, 1])), "{calls:?}");
    assert!(calls.contains(&step(&[1])), "the first one left the batch: {calls:?}");
}

#[test]
fn no_more_rows_are_decoded_together_than_allowed() {
    let script = Script::gated();
    let handle = Handle::spawn(FakeEngine::boxed(&script), 4, 8).unwrap();
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
    assert!(!calls.contains(&step(&[0, 2])), "nobody overtakes: {calls:?}");
}

#[test]
fn a_caller_that_left_costs_nothing_more() {
    let script = Script::gated();
    let handle = Handle::spawn(FakeEngine::boxed(&script), 1, 8).unwrap();
    let running = submit(&handle, 60, 1).unwrap();
    script.wait_for(&step(&[0]));
    let waiting = submit(&handle, 60, 1).unwrap();
    let staying = submit(&handle, 2, 1).unwrap();
    drop(waiting);
    drop(running);
    script.open();
    succeeds(staying, 2);
    let calls = script.calls();
    assert!(!calls.contains(&Call::Start(JobId(1))), "it left while it waited: {calls:?}");
    assert!(calls.contains(&Call::Cancel(JobId(0))), "it left while it ran: {calls:?}");
    let steps_of_the_first = calls.iter().filter(|call| **call == step(&[0])).count();
    assert_eq!(steps_of_the_first, 1, "only the step that was under way");
}

#[test]
fn a_full_queue_says_when_to_come_back_and_queues_nothing() {
    let script = Script::gated();
    let handle = Handle::spawn(FakeEngine::boxed(&script), 1, 1).unwrap();
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
fn an_error_of_one_job_leaves_the_others_alone() {
    let script = Script::gated();
    script.plan(Mishap::FailOne(JobId(0)));
    let handle = Handle::spawn(FakeEngine::boxed(&script), 8, 8).unwrap();
    let guilty = submit(&handle, 3, 1).unwrap();
    script.wait_for(&step(&[0]));
    let innocent = submit(&handle, 3, 1).unwrap();
    script.open();
    assert_eq!(outcome(guilty).1.unwrap().unwrap_err().kind(), ErrorKind::Internal);
    succeeds(innocent, 3);
}

#[test]
fn neither_an_error_nor_a_panic_in_the_model_ends_the_service() {
    for mishap in [Mishap::Fail, Mishap::Panic] {
        let script = Script::gated();
        script.plan(mishap);
        let handle = Handle::spawn(FakeEngine::boxed(&script), 8, 8).unwrap();
        let lost = submit(&handle, 3, 1).unwrap();
        script.let_step(1);
        let error = outcome(lost).1.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{mishap:?}");
        let status = handle.status();
        assert!(status.degraded && !status.failed && status.accepting, "{mishap:?}: {status:?}");
        assert!(status.last_error.unwrap().contains("as planned"), "{mishap:?}");

        script.open();
        succeeds(submit(&handle, 3, 1).unwrap(), 3);
        assert!(!handle.status().degraded, "a success heals: {mishap:?}");
    }
}

#[test]
fn closing_finishes_what_was_accepted_and_takes_nothing_new() {
    let script = Script::gated();
    let handle = Handle::spawn(FakeEngine::boxed(&script), 1, 8).unwrap();
    let running = submit(&handle, 2, 1).unwrap();
    let waiting = submit(&handle, 2, 1).unwrap();
    handle.close();
    assert_eq!(submit(&handle, 1, 1).unwrap_err().kind(), ErrorKind::ShuttingDown);
    script.open();
    succeeds(running, 2);
    succeeds(waiting, 2);
    drop(handle); // joins the thread
    assert!(Arc::strong_count(&script) == 1, "the engine is gone with its thread");
}

#[test]
fn the_last_handle_takes_the_thread_with_it() {
    let script = Script::free();
    let handle = Handle::spawn(FakeEngine::boxed(&script), 1, 8).unwrap();
    let clone = handle.clone();
    drop(handle);
    succeeds(submit(&clone, 1, 1).unwrap(), 1);
    drop(clone);
    assert_eq!(Arc::strong_count(&script), 1);
}

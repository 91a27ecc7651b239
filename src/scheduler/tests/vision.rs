//! Several images at once in the vision tower: a failure there only costs the job at fault.

use super::*;
use crate::engine::fake::Defect;

/// A handle over an engine that encodes `at_once` images together. Job 0 is long and in its first
/// step; `waiting` jobs of four tokens wait, with images of the widths 1, 2, ….
fn backlog(script: &Arc<Script>, at_once: usize, waiting: usize) -> (Handle, Vec<Submission>) {
    let options = SchedulerOptions {
        vision_batch: at_once,
        vision_order: VisionOrder::default(),
        ..options(16, 64)
    };
    let handle = spawn_with(script, options);
    let first = submit(&handle, 4, 1).unwrap();
    script.wait_for(&step(&[0]));
    let rest = (1..=waiting).map(|width| submit_request(&handle, request(width, 4, 1)).unwrap());
    let jobs = std::iter::once(first).chain(rest).collect();
    (handle, jobs)
}

/// The calls of the vision tower, as the widths of their images.
fn encodings(script: &Script) -> Vec<Vec<usize>> {
    let widths = |call| match call {
        Call::Encode(width) => Some(vec![width]),
        Call::EncodeAll(widths) => Some(widths),
        _ => None,
    };
    script.calls().into_iter().filter_map(widths).collect()
}

#[test]
fn images_are_encoded_together_up_to_the_limit_of_the_tower() {
    let script = Script::gated();
    let (handle, jobs) = backlog(&script, 4, 6);
    script.open();
    jobs.into_iter().for_each(|job| succeeds(job, 4));
    assert_eq!(encodings(&script), [vec![0], vec![1, 2, 3, 4], vec![5, 6]]);
    let second = script.calls().into_iter().filter(|call| matches!(call, Call::Step(_))).nth(1);
    assert_eq!(second, Some(step(&[0, 1, 2, 3, 4, 5, 6])), "all images before the next step");
    assert_eq!(handle.status().encoded, 7);
}

#[test]
fn a_tower_that_is_no_faster_with_groups_encodes_one_at_a_time() {
    let script = Script::gated();
    let (_handle, jobs) = backlog(&script, 1, 3);
    script.open();
    jobs.into_iter().for_each(|job| succeeds(job, 4));
    assert!(encodings(&script).iter().all(|widths| widths.len() == 1));
}

#[test]
fn no_more_images_are_encoded_than_rows_are_free() {
    let script = Script::gated();
    let handle = spawn_with(&script, SchedulerOptions { vision_batch: 8, ..options(4, 64) });
    let mut jobs = vec![submit(&handle, 4, 1).unwrap()];
    script.wait_for(&step(&[0]));
    jobs.push(submit_request(&handle, request(1, 4, 2)).unwrap());
    jobs.extend((2..4).map(|width| submit_request(&handle, request(width, 4, 1)).unwrap()));
    script.open();
    jobs.into_iter().for_each(|job| succeeds(job, 4));
    assert_eq!(encodings(&script)[1], [1, 2], "1 + 2 + 1 rows");
}

#[test]
fn encoded_images_join_together_with_the_others() {
    let script = Script::gated();
    let handle = spawn_with(&script, SchedulerOptions { vision_batch: 8, ..options(8, 64) });
    let first = submit(&handle, 4, 1).unwrap();
    script.wait_for(&step(&[0]));
    let image = Arc::new(crate::engine::EncodedImage::new(9_usize, 8));
    let known =
        submit_request(&handle, JobRequest { image: image.into(), ..request(0, 4, 1) }).unwrap();
    let others = [1, 2].map(|width| submit_request(&handle, request(width, 4, 1)).unwrap());
    script.open();
    succeeds(first, 4);
    succeeds(known, 4);
    others.into_iter().for_each(|job| succeeds(job, 4));
    assert_eq!(encodings(&script), [vec![0], vec![1, 2]]);
    assert!(script.calls().contains(&step(&[0, 1, 2, 3])));
}

#[test]
fn an_image_that_cannot_be_encoded_fails_alone_in_a_group() {
    for (defect, said) in
        [(Defect::BadImage(2), "failed as planned"), (Defect::BombImage(2), "panicked")]
    {
        let script = Script::gated();
        let (handle, mut jobs) = backlog(&script, 4, 3);
        script.set_defect(Some(defect));
        script.open();
        let error = failure(jobs.remove(2));
        assert!(error.to_string().contains(said), "{error}");
        jobs.into_iter().for_each(|job| succeeds(job, 4)); // and no token is sent twice
        assert_eq!(encodings(&script), [vec![0], vec![1, 2, 3], vec![1], vec![2], vec![3]]);
        let status = handle.status();
        assert_eq!((status.in_flight, status.failures, status.failed), (0, 1, false));
        assert!(!status.degraded, "the other jobs succeeded: {defect:?}");
    }
}

#[test]
fn a_group_failure_that_does_not_repeat_costs_no_caption() {
    for mishap in [Mishap::Fail, Mishap::Panic, Mishap::OutOfMemory] {
        let script = Script::gated();
        let (handle, jobs) = backlog(&script, 4, 4);
        script.plan_encoding(mishap);
        script.open();
        jobs.into_iter().for_each(|job| succeeds(job, 4));
        assert_eq!((handle.status().failures, handle.status().in_flight), (0, 0), "{mishap:?}");
    }
}

#[test]
fn a_tower_out_of_memory_gets_half_the_images_and_the_limit_stays() {
    let script = Script::gated();
    let (handle, mut jobs) = backlog(&script, 8, 8);
    script.set_defect(Some(Defect::VisionMemory(3)));
    script.open();
    jobs.drain(..).for_each(|job| succeeds(job, 4));
    let widths = |images: std::ops::RangeInclusive<usize>| images.collect::<Vec<_>>();
    let expected = [vec![0], widths(1..=8), widths(1..=4), widths(1..=2), widths(3..=4)];
    assert_eq!(encodings(&script)[..5], expected);
    let status = handle.status();
    assert_eq!((status.vision_limit, status.memory_limit), (Some(2), None));
    assert_eq!((status.out_of_memory, status.failures, status.degraded), (2, 0, false));
    // Later images respect the limit.
    jobs.extend((0..6).map(|_| submit(&handle, 4, 1).unwrap()));
    jobs.drain(..).for_each(|job| succeeds(job, 4));
    assert_eq!(handle.status().out_of_memory, 2);
    assert!(encodings(&script)[3..].iter().all(|widths| widths.len() <= 2));
}

#[test]
fn an_abandoned_job_is_not_encoded_with_the_others() {
    let script = Script::gated();
    let (handle, mut jobs) = backlog(&script, 4, 4);
    drop(jobs.remove(2));
    script.open();
    jobs.into_iter().for_each(|job| succeeds(job, 4));
    assert_eq!(encodings(&script), [vec![0], vec![1, 3, 4]]);
    assert_eq!(handle.status().in_flight, 0);
}

//! Failures of the engine: only the job at fault fails.

use super::*;
use crate::engine::fake::Defect;
use crate::scheduler::job::ScheduledJob;

/// A handle with jobs 0, 1, … of these lengths that share a batch from the second step on.
fn batch(
    script: &Arc<Script>,
    max_batch_size: usize,
    lengths: &[usize],
) -> (Handle, Vec<Submission>) {
    let handle = spawn(script, max_batch_size, 64);
    let first = submit(&handle, lengths[0], 1).unwrap();
    script.wait_for(&step(&[0]));
    let rest = lengths[1..].iter().map(|&length| submit(&handle, length, 1).unwrap());
    let jobs = std::iter::once(first).chain(rest).collect();
    (handle, jobs)
}

/// The decode steps, as the ids of their jobs.
fn steps(script: &Script) -> Vec<Vec<u64>> {
    let numbers = |call| match call {
        Call::Step(jobs) => Some(jobs.into_iter().map(|job| job.0).collect()),
        _ => None,
    };
    script.calls().into_iter().filter_map(numbers).collect()
}

#[test]
fn an_error_of_one_job_leaves_the_others_alone() {
    let script = Script::gated();
    script.plan(Mishap::FailOne(JobId(0)));
    let (_handle, mut jobs) = batch(&script, 8, &[3, 3]);
    script.open();
    succeeds(jobs.pop().unwrap(), 3);
    assert_eq!(failure(jobs.pop().unwrap()).kind(), ErrorKind::Internal);
}

#[test]
fn the_job_at_fault_fails_and_the_others_get_their_captions() {
    for (defect, said) in
        [(Defect::Poison(JobId(1)), "failed as planned"), (Defect::Bomb(JobId(1)), "panicked")]
    {
        let script = Script::gated();
        let (handle, jobs) = batch(&script, 8, &[4, 4, 4]);
        script.set_defect(Some(defect));
        script.open();
        for (job, submission) in jobs.into_iter().enumerate() {
            if job == 1 {
                let error = failure(submission);
                assert_eq!(error.kind(), ErrorKind::Internal, "{defect:?}");
                assert!(error.to_string().contains(said), "{error}");
            } else {
                succeeds(submission, 4); // and no token is sent twice
            }
        }
        let steps = steps(&script);
        let after = steps.iter().position(|jobs| jobs.len() == 3).unwrap() + 1;
        assert!(steps[after..].iter().all(|jobs| jobs.len() == 1), "one by one: {steps:?}");
        assert_eq!(script.count(&Call::Encode(0)), 3, "the vision tower ran once per image");
        let status = handle.status();
        assert_eq!((status.in_flight, status.failed), (0, false));
        assert_eq!(status.failures, 2, "once in the batch, once alone");
        assert!(!status.degraded, "the last job succeeded");
    }
}

#[test]
fn a_failure_that_does_not_repeat_costs_no_caption() {
    for mishap in [Mishap::Fail, Mishap::Panic] {
        let script = Script::gated();
        let (handle, jobs) = batch(&script, 8, &[4, 4]);
        script.let_step(1);
        script.wait_for(&step(&[0, 1]));
        script.plan(mishap);
        script.open();
        jobs.into_iter().for_each(|job| succeeds(job, 4));
        assert_eq!(handle.status().failures, 1, "{mishap:?}");
    }
}

#[test]
fn new_jobs_wait_until_the_suspects_are_done_and_then_share_a_batch() {
    let script = Script::gated();
    let (handle, mut jobs) = batch(&script, 8, &[4, 4]);
    script.let_step(1);
    script.wait_for(&step(&[0, 1]));
    script.plan(Mishap::Fail);
    script.let_step(1);
    script.wait_until(|calls| calls.iter().filter(|call| **call == step(&[0])).count() == 2);
    jobs.extend((0..2).map(|_| submit(&handle, 2, 1).unwrap()));
    script.open();
    let lengths = [4, 4, 2, 2];
    jobs.into_iter().zip(lengths).for_each(|(job, length)| succeeds(job, length));
    let steps = steps(&script);
    assert_eq!(steps.last(), Some(&vec![2, 3]), "{steps:?}");
    assert!(!steps.iter().any(|jobs| jobs.len() > 1 && jobs.contains(&0) && jobs.contains(&2)));
}

#[test]
fn unseeded_sampling_keeps_its_seed_across_a_restart() {
    let params = GenerationParams { do_sample: true, ..GenerationParams::default() };
    let (mut job, _submission) =
        ScheduledJob::new(JobId(0), JobRequest { task: params.into(), ..request(0, 1, 1) })
            .unwrap();
    let image = || request(0, 1, 1).image;
    let mut seed = || match job.start(image()).task.task() {
        Some(Task::Write(params)) => params.seed,
        Some(Task::Rank(_)) | None => None,
    };
    let first = seed();
    assert!(first.is_some());
    assert_eq!(seed(), first);
}

#[test]
fn a_restart_that_writes_other_tokens_is_an_error() {
    let (mut job, submission) = ScheduledJob::new(JobId(0), request(0, 4, 1)).unwrap();
    job.send_token(5).unwrap();
    job.send_token(6).unwrap();
    job.start(request(0, 4, 1).image);
    job.send_token(5).unwrap();
    assert_eq!(job.send_token(7).unwrap_err().kind(), ErrorKind::Internal);
    drop(job);
    assert_eq!(outcome(submission).0, [5, 6]);
}

#[test]
fn an_image_that_cannot_be_encoded_fails_alone() {
    for mishap in [Mishap::Fail, Mishap::Panic] {
        let script = Script::gated();
        let handle = spawn(&script, 8, 8);
        let good = submit(&handle, 4, 1).unwrap();
        script.wait_for(&step(&[0]));
        script.plan_encoding(mishap);
        let bad = submit_request(&handle, request(9, 4, 1)).unwrap();
        let last = submit(&handle, 4, 1).unwrap();
        script.open();
        assert_eq!(failure(bad).kind(), ErrorKind::Internal);
        succeeds(good, 4);
        succeeds(last, 4);
        assert_eq!(script.count(&Call::Encode(9)), 1, "the job at fault is known: no second try");
        let steps = steps(&script);
        assert!(steps.contains(&vec![0, 2]), "the other jobs stay together: {steps:?}");
    }
}

#[test]
fn neither_an_error_nor_a_panic_in_the_model_ends_the_service() {
    for mishap in [Mishap::Fail, Mishap::Panic] {
        let script = Script::gated();
        script.plan(mishap);
        let handle = spawn(&script, 8, 8);
        let lost = submit(&handle, 3, 1).unwrap();
        script.let_step(1);
        assert_eq!(failure(lost).kind(), ErrorKind::Internal, "{mishap:?}");
        let status = handle.status();
        assert!(status.degraded && !status.failed && status.accepting, "{mishap:?}: {status:?}");
        assert!(status.last_error.unwrap().contains("as planned"), "{mishap:?}");

        // It stays degraded until a step succeeds.
        let next = submit(&handle, 3, 1).unwrap();
        script.wait_for(&step(&[1]));
        assert!(handle.status().degraded);
        script.open();
        succeeds(next, 3);
        assert!(!handle.status().degraded, "a success ends the degraded state: {mishap:?}");
    }
}

#[test]
fn the_worker_pauses_while_the_model_keeps_failing() {
    let script = Script::free();
    script.set_defect(Some(Defect::Broken));
    let handle = spawn(&script, 1, 64);
    let begin = Instant::now();
    let jobs: Vec<_> = (0..6).map(|_| submit(&handle, 2, 1).unwrap()).collect();
    jobs.into_iter().for_each(|job| drop(failure(job)));
    // After the fourth and after the fifth failure: 50 and 100 ms.
    assert!(begin.elapsed() >= Duration::from_millis(150), "{:?}", begin.elapsed());
    assert_eq!(handle.status().failures, 6);
    script.set_defect(None);
    succeeds(submit(&handle, 2, 1).unwrap(), 2);
    let begin = Instant::now();
    succeeds(submit(&handle, 2, 1).unwrap(), 2);
    assert!(begin.elapsed() < Duration::from_millis(200), "a success ends the pauses");
}

#[test]
fn a_device_out_of_memory_gets_half_the_batch_and_the_limit_stays() {
    let script = Script::gated();
    let (handle, mut jobs) = batch(&script, 8, &[4; 8]);
    script.set_defect(Some(Defect::Memory(4)));
    script.open();
    jobs.drain(..).for_each(|job| succeeds(job, 4));
    let status = handle.status();
    assert_eq!((status.out_of_memory, status.memory_limit), (1, Some(4)));
    assert_eq!(
        (status.failures, status.degraded),
        (0, false),
        "running out of memory is no defect"
    );
    assert!(steps(&script).iter().filter(|jobs| jobs.len() > 4).count() == 1);
    // Later jobs respect the limit.
    jobs.extend((0..8).map(|_| submit(&handle, 4, 1).unwrap()));
    jobs.drain(..).for_each(|job| succeeds(job, 4));
    assert_eq!(handle.status().out_of_memory, 1);
}

#[test]
fn jobs_that_do_not_fit_in_half_a_batch_are_tried_one_by_one() {
    let script = Script::gated();
    let (handle, jobs) = batch(&script, 8, &[4; 8]);
    script.set_defect(Some(Defect::Memory(1)));
    script.open();
    jobs.into_iter().for_each(|job| succeeds(job, 4));
    let widths: Vec<usize> = steps(&script).iter().map(Vec::len).collect();
    assert_eq!(widths[..3], [1, 8, 4], "halved first");
    let rest = &widths[3..];
    assert!(rest.iter().filter(|width| **width > 1).count() <= 2, "then one by one: {widths:?}");
    assert_eq!(script.count(&Call::Encode(0)), 8);
    assert_eq!(handle.status().memory_limit, Some(1));
}

#[test]
fn jobs_that_do_not_fit_alone_fail_and_later_jobs_succeed() {
    let script = Script::gated();
    let (handle, jobs) = batch(&script, 8, &[4, 4]);
    script.set_defect(Some(Defect::Memory(0)));
    script.open();
    for job in jobs {
        assert_eq!(failure(job).kind(), ErrorKind::OutOfMemory);
    }
    script.set_defect(None);
    succeeds(submit(&handle, 2, 1).unwrap(), 2);
    assert_eq!(handle.status().in_flight, 0);
}

#[test]
fn an_image_that_finds_no_memory_next_to_others_waits_for_them() {
    let script = Script::gated();
    let handle = spawn(&script, 8, 8);
    let first = submit(&handle, 4, 1).unwrap();
    script.wait_for(&step(&[0]));
    script.plan_encoding(Mishap::OutOfMemory);
    let second = submit_request(&handle, request(9, 4, 1)).unwrap();
    script.open();
    succeeds(first, 4);
    succeeds(second, 4);
    assert_eq!(script.count(&Call::Encode(9)), 2);
    assert!(!steps(&script).contains(&vec![0, 1]));
    assert_eq!(handle.status().memory_limit, Some(1));
}

#[test]
fn a_job_whose_caller_leaves_before_the_restart_costs_nothing_more() {
    let script = Script::gated();
    let (handle, mut jobs) = batch(&script, 8, &[4, 4, 4]);
    script.let_step(1);
    script.wait_for(&step(&[0, 1, 2]));
    script.plan(Mishap::Fail);
    script.let_step(1);
    // The first suspect is in its first step alone, the others wait.
    script.wait_until(|calls| calls.iter().filter(|call| **call == step(&[0])).count() == 2);
    drop(jobs.remove(1));
    script.open();
    jobs.into_iter().for_each(|job| succeeds(job, 4));
    assert_eq!(script.count(&step(&[1])), 0);
    assert_eq!(handle.status().in_flight, 0);
}

/// Waits until the model thread has ended for good.
fn wait_for_the_end(handle: &Handle) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(handle.failed());
}

#[test]
fn a_lost_device_ends_the_model_at_once() {
    let script = Script::gated();
    let (handle, jobs) = batch(&script, 2, &[4, 4]);
    let waiting = submit(&handle, 4, 1).unwrap();
    script.let_step(1);
    script.wait_for(&step(&[0, 1]));
    script.plan(Mishap::DeviceLost);
    assert!(!handle.has_failed());
    script.open();
    for job in jobs {
        assert_eq!(failure(job).kind(), ErrorKind::DeviceLost, "any of them may have caused it");
    }
    assert!(events(waiting).is_empty(), "its channel closes without a result");
    wait_for_the_end(&handle);
    assert!(handle.has_failed());
    let status = handle.status();
    assert!(status.failed && !status.accepting && status.in_flight == 0, "{status:?}");
    assert!(status.last_error.unwrap().contains("lost as planned"));
    assert_eq!(submit(&handle, 4, 1).unwrap_err().kind(), ErrorKind::NotReady);
    assert_eq!(script.count(&Call::Reset), 0, "there is no second try");
    assert_eq!(script.calls().last(), Some(&step(&[0, 1])), "nor any other call");
}

#[test]
fn a_device_that_is_lost_while_images_are_encoded_ends_the_model() {
    for (vision_batch, images) in [(1, 1), (4, 3)] {
        let script = Script::gated();
        let options = SchedulerOptions { vision_batch, ..options(8, 8) };
        let handle = spawn_with(&script, options);
        let running = submit(&handle, 4, 1).unwrap();
        script.wait_for(&step(&[0]));
        script.plan_encoding(Mishap::DeviceLost);
        let jobs: Vec<_> =
            (0..images).map(|_| submit_request(&handle, request(9, 4, 1)).unwrap()).collect();
        script.open();
        assert_eq!(failure(running).kind(), ErrorKind::DeviceLost);
        for job in jobs {
            assert_eq!(failure(job).kind(), ErrorKind::DeviceLost, "{vision_batch}");
        }
        wait_for_the_end(&handle);
    }
}

#[test]
fn slots_that_are_reserved_when_the_device_is_lost_cannot_be_filled() {
    let script = Script::gated();
    let handle = spawn(&script, 8, 8);
    let slot = handle.reserve(1, Priority::Interactive).unwrap().pop().unwrap();
    let job = submit(&handle, 4, 1).unwrap();
    script.wait_for(&step(&[0]));
    handle.close();
    script.plan(Mishap::DeviceLost);
    script.open();
    assert_eq!(failure(job).kind(), ErrorKind::DeviceLost);
    wait_for_the_end(&handle);
    assert_eq!(slot.submit(request(0, 4, 1)).unwrap_err().kind(), ErrorKind::NotReady);
}

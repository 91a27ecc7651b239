//! Admission of new jobs to the batch, and the encoding of their images: one at a time, or several
//! at once where the engine is faster that way.
//!
//! A failure to encode several images at once fails none of their jobs. After running out of memory
//! the group is halved, and the smaller size is kept as the limit. After any other failure the images
//! are encoded one by one, so that only the job at fault fails.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::handle::VisionOrder;
use super::job::ScheduledJob;
use super::recovery::{Failure, guarded, is_loss};
use super::worker::Worker;
use crate::engine::{EncodedImage, ImageInput};
use crate::metrics::Stage;
use cutline_error::ErrorKind;

impl Worker<'_> {
    /// Starts the waiting jobs that fit into the batch.
    pub(super) fn admit(&mut self) {
        if self.images_at_once() > 1 {
            return self.admit_groups();
        }
        while let Some(job) = self.next_job(&[]) {
            let failures = self.backoff.failures();
            self.start(job);
            if self.backoff.failures() > failures {
                break;
            }
        }
    }

    /// [`admit`](Self::admit) in groups whose images are encoded together. An image costs less in a
    /// group, so the backlog is no reason to wait.
    fn admit_groups(&mut self) {
        loop {
            let mut group = Vec::new();
            let mut images = 0;
            while images < self.images_at_once()
                && let Some(job) = self.next_job(&group)
            {
                images += usize::from(needs_vision(&job));
                group.push(job);
            }
            if group.is_empty() {
                return;
            }
            let failures = self.backoff.failures();
            self.start_group(group);
            if self.backoff.failures() > failures {
                return;
            }
        }
    }

    /// The number of images that the vision tower may encode at once.
    fn images_at_once(&self) -> usize {
        self.vision_limit.map_or(self.vision_batch, |limit| limit.min(self.vision_batch))
    }

    /// Takes the next job that fits into the batch, next to the running jobs and those in `group`.
    fn next_job(&mut self, group: &[ScheduledJob]) -> Option<ScheduledJob> {
        if self.running.iter().chain(group).any(|job| job.alone) {
            return None;
        }
        let batch_is_empty = self.running.is_empty() && group.is_empty();
        let group_rows: usize = group.iter().map(ScheduledJob::rows).sum();
        let free = self.row_limit().saturating_sub(self.rows() + group_rows);
        if let Some(first) = self.resuming.front() {
            let fits = batch_is_empty || (!first.alone && first.rows() <= free);
            return if fits { self.resuming.pop_front() } else { None };
        }
        let mut state = self.shared.lock();
        if needs_vision(state.queue.peek()?) && self.should_decode_first(state.queue.len()) {
            return None;
        }
        let job = state.queue.next(free, batch_is_empty)?;
        state.in_flight += 1;
        Some(job)
    }

    /// Whether to decode the present batch further before encoding one of `waiting` images.
    fn should_decode_first(&self, waiting: usize) -> bool {
        self.vision_order == VisionOrder::ByBacklog
            && self.images_at_once() == 1
            && self.running.len() >= (waiting / 2).max(2)
    }

    fn start(&mut self, mut job: ScheduledJob) {
        if !self.announce_start(&mut job) {
            return;
        }
        if let ImageInput::Pixels(pixels) = &job.image {
            let begin = Instant::now();
            let pixels = Arc::clone(pixels);
            job.trace.enter_vision();
            match guarded(|| self.engine.encode(&[pixels])) {
                Ok(images) => {
                    self.shared.metrics.stage(Stage::Vision, begin.elapsed());
                    images.into_iter().for_each(|image| self.set_encoded(&mut job, image));
                }
                Err(failure) => return self.start_failed(job, failure),
            }
        }
        self.decode(job);
    }

    /// [`start`](Self::start) for a group of jobs.
    fn start_group(&mut self, group: Vec<ScheduledJob>) {
        let mut waiting = VecDeque::new();
        for mut job in group {
            if !self.announce_start(&mut job) {
                continue;
            }
            if needs_vision(&job) {
                waiting.push_back(job);
            } else {
                self.decode(job);
            }
        }
        while !waiting.is_empty() && !self.device_lost {
            let count = self.images_at_once().min(waiting.len());
            let mut jobs: Vec<ScheduledJob> = waiting.drain(..count).collect();
            jobs.retain(|job| !self.drop_if_abandoned(job));
            if jobs.len() < 2 {
                jobs.into_iter().for_each(|job| self.start(job));
                continue;
            }
            match self.encode_group(&mut jobs) {
                Ok(()) => jobs.into_iter().for_each(|job| self.decode(job)),
                Err(Failure::Error(error)) if error.kind() == ErrorKind::OutOfMemory => {
                    self.vision_out_of_memory(jobs.len());
                    jobs.into_iter().rev().for_each(|job| waiting.push_front(job));
                }
                Err(failure) if is_loss(failure.error()) => self.give_up(failure.error(), jobs),
                Err(failure) => {
                    self.group_encoding_failed(failure, jobs.len());
                    jobs.into_iter().for_each(|job| self.start(job));
                }
            }
        }
    }

    /// Encodes the images of all `jobs` at once, all or none.
    fn encode_group(&mut self, jobs: &mut [ScheduledJob]) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut pixels = Vec::with_capacity(jobs.len());
        for job in &mut *jobs {
            job.trace.enter_vision();
            if let ImageInput::Pixels(image) = &job.image {
                pixels.push(Arc::clone(image));
            }
        }
        let images = guarded(|| self.engine.encode(&pixels))?;
        // Each image counts an equal share, so that the sum is the time that the tower worked.
        let share = begin.elapsed() / u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        for (job, image) in jobs.iter_mut().zip(images) {
            self.shared.metrics.stage(Stage::Vision, share);
            self.set_encoded(job, image);
        }
        Ok(())
    }

    /// Tells the caller that the job left the queue. False if the caller has left; the job is then
    /// done.
    fn announce_start(&self, job: &mut ScheduledJob) -> bool {
        if self.drop_if_abandoned(job) {
            return false;
        }
        if let Some(queued) = job.announce_start(Instant::now()) {
            self.shared.metrics.stage(Stage::Queue, queued);
        }
        true
    }

    fn set_encoded(&self, job: &mut ScheduledJob, image: EncodedImage) {
        self.shared.lock().encoded += 1;
        job.set_encoded(&Arc::new(image));
    }

    /// Adds a job with an encoded image to the batch.
    fn decode(&mut self, mut job: ScheduledJob) {
        // The caller may have left while the image was encoded.
        if self.drop_if_abandoned(&job) {
            return;
        }
        let image = job.image.clone();
        let start = job.start(image);
        match guarded(|| self.engine.start(start)) {
            Ok(()) => self.running.push(job),
            Err(failure) => self.start_failed(job, failure),
        }
    }

    /// Whether the caller has left. The job then no longer counts as in flight, and the worker must
    /// drop it.
    fn drop_if_abandoned(&self, job: &ScheduledJob) -> bool {
        let abandoned = job.is_abandoned();
        if abandoned {
            self.shared.lock().in_flight -= 1;
        }
        abandoned
    }
}

/// Whether the image has yet to go through the vision tower.
fn needs_vision(job: &ScheduledJob) -> bool {
    matches!(job.image, ImageInput::Pixels(_))
}

//! New jobs on their way into the engine: one image at a time through the vision tower, or, where
//! the engine gains by it, several at once.
//!
//! Whatever happens to several at once costs none of them: want of memory halves their number, for
//! good, and after any other failure they are encoded one by one, so that only the one at fault
//! fails.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::handle::VisionOrder;
use super::job::ScheduledJob;
use super::recovery::{Failure, guarded};
use super::worker::Worker;
use crate::engine::{EncodedImage, ImageInput};
use crate::metrics::Stage;
use cutline_error::ErrorKind;

impl Worker<'_> {
    /// Takes in what fits beside the running jobs.
    pub(super) fn admit(&mut self) {
        if self.images_at_once() > 1 {
            return self.admit_together();
        }
        while let Some(entry) = self.next(&[]) {
            let vision = needs_vision(&entry);
            let failures = self.backoff.failures();
            self.start(entry);
            let rest_later = vision && self.vision_order == VisionOrder::OneBetweenSteps;
            if rest_later || self.backoff.failures() > failures {
                break;
            }
        }
    }

    /// [`admit`](Self::admit), the images of as many jobs as fit in one go. Here an image is cheaper
    /// in company, so the backlog is no reason to wait.
    fn admit_together(&mut self) {
        loop {
            let mut group = Vec::new();
            let mut images = 0;
            while images < self.images_at_once()
                && let Some(entry) = self.next(&group)
            {
                images += usize::from(needs_vision(&entry));
                group.push(entry);
            }
            if group.is_empty() {
                return;
            }
            let failures = self.backoff.failures();
            self.start_together(group);
            let rest_later = images > 0 && self.vision_order == VisionOrder::OneBetweenSteps;
            if rest_later || self.backoff.failures() > failures {
                return;
            }
        }
    }

    /// Images that the tower may be given at once.
    fn images_at_once(&self) -> usize {
        let most = self.vision_batch;
        self.vision_limit.map_or(most, |limit| limit.min(most))
    }

    /// The next job that fits beside the running ones and those that were taken with it.
    fn next(&mut self, taken: &[ScheduledJob]) -> Option<ScheduledJob> {
        if self.running.iter().chain(taken).any(|entry| entry.alone) {
            return None;
        }
        let empty = self.running.is_empty() && taken.is_empty();
        let taken: usize = taken.iter().map(ScheduledJob::rows).sum();
        let free = self.limit().saturating_sub(self.rows() + taken);
        if let Some(first) = self.resuming.front() {
            let fits = empty || (!first.alone && first.rows() <= free);
            return if fits { self.resuming.pop_front() } else { None };
        }
        let mut state = self.shared.lock();
        if needs_vision(state.queue.peek()?) && self.enough_for(state.queue.len()) {
            return None;
        }
        let entry = state.queue.next(free, empty)?;
        state.in_flight += 1;
        Some(entry)
    }

    /// Whether those in the batch are to be decoded further before one of `waiting` images is
    /// encoded.
    fn enough_for(&self, waiting: usize) -> bool {
        self.vision_order == VisionOrder::ByBacklog
            && self.images_at_once() == 1
            && self.running.len() >= (waiting / 2).max(2)
    }

    fn start(&mut self, mut entry: ScheduledJob) {
        if !self.announce(&mut entry) {
            return;
        }
        if let ImageInput::Pixels(pixels) = &entry.image {
            let begin = Instant::now();
            let pixels = Arc::clone(pixels);
            entry.trace.vision();
            match guarded(|| self.engine.encode(&[pixels])) {
                Ok(images) => {
                    self.shared.metrics.stage(Stage::Vision, begin.elapsed());
                    images.into_iter().for_each(|image| self.keep(&mut entry, image));
                }
                Err(failure) => return self.failed_to_start(entry, failure),
            }
        }
        self.decode(entry);
    }

    /// [`start`](Self::start) of several.
    fn start_together(&mut self, group: Vec<ScheduledJob>) {
        let mut waiting = VecDeque::new();
        for mut entry in group {
            if !self.announce(&mut entry) {
            } else if needs_vision(&entry) {
                waiting.push_back(entry);
            } else {
                self.decode(entry);
            }
        }
        while !waiting.is_empty() {
            let count = self.images_at_once().min(waiting.len());
            let mut some: Vec<ScheduledJob> = waiting.drain(..count).collect();
            some.retain(|entry| !self.is_over(entry));
            if some.len() < 2 {
                some.into_iter().for_each(|entry| self.start(entry));
                continue;
            }
            match self.encode_together(&mut some) {
                Ok(()) => some.into_iter().for_each(|entry| self.decode(entry)),
                Err(Failure::Error(error)) if error.kind() == ErrorKind::OutOfMemory => {
                    self.tower_out_of_memory(some.len());
                    some.into_iter().rev().for_each(|entry| waiting.push_front(entry));
                }
                Err(failure) => {
                    self.encoding_failed(failure, some.len());
                    some.into_iter().for_each(|entry| self.start(entry));
                }
            }
        }
    }

    /// All of their images in one go, or none of them.
    fn encode_together(&mut self, entries: &mut [ScheduledJob]) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut pixels = Vec::with_capacity(entries.len());
        for entry in &mut *entries {
            entry.trace.vision();
            if let ImageInput::Pixels(image) = &entry.image {
                pixels.push(Arc::clone(image));
            }
        }
        let images = guarded(|| self.engine.encode(&pixels))?;
        // The tower's time is shared among them, so that the sum is the time that it worked.
        let share = begin.elapsed() / u32::try_from(entries.len()).unwrap_or(u32::MAX);
        for (entry, image) in entries.iter_mut().zip(images) {
            self.shared.metrics.stage(Stage::Vision, share);
            self.keep(entry, image);
        }
        Ok(())
    }

    /// Tells the caller that it is in the model, unless nobody waits any more.
    fn announce(&self, entry: &mut ScheduledJob) -> bool {
        if self.is_over(entry) {
            return false;
        }
        if let Some(queued) = entry.announce(Instant::now()) {
            self.shared.metrics.stage(Stage::Queue, queued);
        }
        true
    }

    fn keep(&self, entry: &mut ScheduledJob, image: EncodedImage) {
        self.shared.lock().encoded += 1;
        entry.encoded(&Arc::new(image));
    }

    /// Makes a job whose image is encoded part of the batch.
    fn decode(&mut self, mut entry: ScheduledJob) {
        // The vision tower takes long enough to become tired of waiting.
        if self.is_over(&entry) {
            return;
        }
        let image = entry.image.clone();
        let job = entry.start(image);
        match guarded(|| self.engine.start(job)) {
            Ok(()) => self.running.push(entry),
            Err(failure) => self.failed_to_start(entry, failure),
        }
    }

    /// Whether nobody waits for it any more, in which case it is let go.
    fn is_over(&self, entry: &ScheduledJob) -> bool {
        let over = entry.is_over(Instant::now());
        if over {
            self.shared.lock().in_flight -= 1;
        }
        over
    }
}

/// Whether the vision tower has yet to see the image.
fn needs_vision(entry: &ScheduledJob) -> bool {
    matches!(entry.image, ImageInput::Pixels(_))
}

//! A scripted engine for tests: it takes steps when the test allows them, fails as planned, and
//! records its calls.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use super::{
    EncodedImage, Engine, Event, FinishReason, ImageInput, Job, JobId, PixelValues, Sequence,
};
use cutline_error::{Error, ErrorKind, Result};

/// A call of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    /// An image of this width.
    Encode(usize),
    /// Images of these widths at once.
    EncodeAll(Vec<usize>),
    Start(JobId),
    /// With the jobs in the batch.
    Step(Vec<JobId>),
    Cancel(JobId),
    Reset,
}

/// What happens in the next call. Without a mishap it succeeds, and in a step every job writes a
/// token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mishap {
    Fail,
    Panic,
    OutOfMemory,
    DeviceLost,
    /// In a step: only this job fails.
    FailOne(JobId),
}

/// A lasting defect of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Every step with this job in it fails.
    Poison(JobId),
    /// Every step with this job in it panics.
    Bomb(JobId),
    /// There is memory for at most this many jobs.
    Memory(usize),
    /// Every step fails.
    Broken,
    /// Every encoding with an image of this width in it fails.
    BadImage(usize),
    /// Every encoding with an image of this width in it panics.
    BombImage(usize),
    /// There is memory for at most this many images at once in the vision tower.
    VisionMemory(usize),
}

/// The part of the engine that a test controls and observes.
#[derive(Debug, Default)]
pub(crate) struct Script {
    state: Mutex<ScriptState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ScriptState {
    /// Steps that are still allowed; `None` for no limit.
    permits: Option<usize>,
    steps: VecDeque<Mishap>,
    encodings: VecDeque<Mishap>,
    defect: Option<Defect>,
    calls: Vec<Call>,
}

impl Script {
    /// An engine whose steps wait for [`let_step`](Self::let_step).
    pub(crate) fn gated() -> Arc<Self> {
        let state = ScriptState { permits: Some(0), ..ScriptState::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// An engine that never waits.
    pub(crate) fn free() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn let_step(&self, steps: usize) {
        let mut state = self.state.lock().unwrap();
        state.permits = state.permits.map(|permits| permits + steps);
        self.changed.notify_all();
    }

    /// From now on steps do not wait.
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().permits = None;
        self.changed.notify_all();
    }

    /// Plans a mishap for the next step without one.
    pub(crate) fn plan(&self, mishap: Mishap) {
        self.state.lock().unwrap().steps.push_back(mishap);
    }

    /// Plans a mishap for the next encoding without one.
    pub(crate) fn plan_encoding(&self, mishap: Mishap) {
        self.state.lock().unwrap().encodings.push_back(mishap);
    }

    pub(crate) fn set_defect(&self, defect: Option<Defect>) {
        self.state.lock().unwrap().defect = defect;
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }

    /// How often the engine received this call.
    pub(crate) fn count(&self, wanted: &Call) -> usize {
        self.state.lock().unwrap().calls.iter().filter(|call| *call == wanted).count()
    }

    /// Blocks until the engine has received this call.
    pub(crate) fn wait_for(&self, wanted: &Call) {
        self.wait_until(|calls| calls.contains(wanted));
    }

    /// Blocks until the calls satisfy `holds`.
    pub(crate) fn wait_until(&self, holds: impl Fn(&[Call]) -> bool) {
        let mut state = self.state.lock().unwrap();
        while !holds(&state.calls) {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn record(&self, call: Call) {
        self.state.lock().unwrap().calls.push(call);
        self.changed.notify_all();
    }

    fn enter_encoding(&self, widths: &[usize]) -> Option<Mishap> {
        let mut state = self.state.lock().unwrap();
        state.encodings.pop_front().or(match state.defect {
            Some(Defect::BadImage(width)) if widths.contains(&width) => Some(Mishap::Fail),
            Some(Defect::BombImage(width)) if widths.contains(&width) => Some(Mishap::Panic),
            Some(Defect::VisionMemory(most)) if widths.len() > most => Some(Mishap::OutOfMemory),
            _ => None,
        })
    }

    fn enter_step(&self, jobs: &[JobId]) -> Option<Mishap> {
        let mut state = self.state.lock().unwrap();
        while state.permits == Some(0) {
            state = self.changed.wait(state).unwrap();
        }
        state.permits = state.permits.map(|permits| permits - 1);
        state.steps.pop_front().or(match state.defect {
            Some(Defect::Poison(job)) if jobs.contains(&job) => Some(Mishap::Fail),
            Some(Defect::Bomb(job)) if jobs.contains(&job) => Some(Mishap::Panic),
            Some(Defect::Memory(most)) if jobs.len() > most => Some(Mishap::OutOfMemory),
            Some(Defect::Broken) => Some(Mishap::Fail),
            _ => None,
        })
    }
}

/// Writes the tokens 0, 1, 2, … up to the job's `max_new_tokens`.
pub(crate) struct FakeEngine {
    script: Arc<Script>,
    jobs: Vec<(Job, u32)>,
    /// Whether a panic left it in a state in which nothing works.
    poisoned: bool,
}

impl FakeEngine {
    pub(crate) fn boxed(script: &Arc<Script>) -> Box<dyn Engine> {
        Box::new(Self { script: Arc::clone(script), jobs: Vec::new(), poisoned: false })
    }

    fn apply(&mut self, mishap: Mishap) -> Result<()> {
        match mishap {
            Mishap::Fail => Err(Error::internal("it failed as planned")),
            Mishap::OutOfMemory => Err(Error::new(ErrorKind::OutOfMemory, "no memory as planned")),
            Mishap::DeviceLost => Err(Error::new(ErrorKind::DeviceLost, "lost as planned")),
            Mishap::Panic => {
                self.poisoned = true;
                panic!("it panics as planned")
            }
            Mishap::FailOne(_) => Ok(()),
        }
    }

    fn check(&self) -> Result<()> {
        if self.poisoned { Err(Error::internal("it was not reset after a panic")) } else { Ok(()) }
    }
}

impl Engine for FakeEngine {
    fn encode(&mut self, images: &[Arc<PixelValues>]) -> Result<Vec<EncodedImage>> {
        let widths: Vec<usize> = images.iter().map(|pixels| pixels.width).collect();
        self.script.record(match widths[..] {
            [width] => Call::Encode(width),
            _ => Call::EncodeAll(widths.clone()),
        });
        self.check()?;
        let mishap = self.script.enter_encoding(&widths);
        mishap.map_or(Ok(()), |mishap| self.apply(mishap))?;
        Ok(widths.into_iter().map(|width| EncodedImage::new(width, 8)).collect())
    }

    fn start(&mut self, job: Job) -> Result<()> {
        self.script.record(Call::Start(job.id));
        self.check()?;
        assert!(
            matches!(job.image, ImageInput::Encoded(_)),
            "the scheduler encodes images before it starts jobs"
        );
        self.jobs.push((job, 0));
        Ok(())
    }

    fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let ids: Vec<JobId> = self.jobs.iter().map(|(job, _)| job.id).collect();
        self.script.record(Call::Step(ids.clone()));
        self.check()?;
        let mishap = self.script.enter_step(&ids);
        mishap.map_or(Ok(()), |mishap| self.apply(mishap))?;
        self.jobs.retain_mut(|(job, written)| {
            if mishap == Some(Mishap::FailOne(job.id)) {
                let error = Error::internal("this job fails as planned");
                events.push(Event::Failed { job: job.id, error });
                return false;
            }
            events.push(Event::Token { job: job.id, token: *written });
            *written += 1;
            let finished = *written as usize >= job.task.max_new_tokens();
            if finished {
                let sequence = Sequence {
                    ids: (0..*written).collect(),
                    generated: *written as usize,
                    confidence: 1.0,
                    log_probabilities: vec![0.0; *written as usize],
                    alternatives: Vec::new(),
                    score: None,
                    finish_reason: FinishReason::Length,
                };
                events.push(Event::Done { job: job.id, sequences: vec![sequence] });
            }
            !finished
        });
        Ok(())
    }

    fn cancel(&mut self, job: JobId) {
        self.script.record(Call::Cancel(job));
        self.jobs.retain(|(other, _)| other.id != job);
    }

    fn reset(&mut self) {
        self.script.record(Call::Reset);
        self.jobs.clear();
        self.poisoned = false;
    }
}

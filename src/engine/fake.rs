//! A scripted engine for tests: it steps when it is let, fails when it is told to, and remembers
//! what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use super::{Engine, EngineInfo, Event, FinishReason, Job, JobId, Sequence};
use crate::error::{Error, Result};

/// Something that the engine was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Start(JobId),
    /// With the jobs that were in the batch.
    Step(Vec<JobId>),
    Cancel(JobId),
}

/// What the next step does; without an entry, every job writes a token.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mishap {
    Fail,
    Panic,
    FailOne(JobId),
}

/// The test's end.
#[derive(Debug, Default)]
pub(crate) struct Script {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Steps that may still be taken; `None` for as many as it likes.
    permits: Option<usize>,
    mishaps: VecDeque<Mishap>,
    calls: Vec<Call>,
}

impl Script {
    /// An engine that waits for [`let_step`](Self::let_step).
    pub(crate) fn gated() -> Arc<Self> {
        let state = State { permits: Some(0), ..State::default() };
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

    /// From now on it does not wait.
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().permits = None;
        self.changed.notify_all();
    }

    /// The next step that has no mishap yet has this one.
    pub(crate) fn plan(&self, mishap: Mishap) {
        self.state.lock().unwrap().mishaps.push_back(mishap);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Blocks until the engine was asked `wanted`.
    pub(crate) fn wait_for(&self, wanted: &Call) {
        let mut state = self.state.lock().unwrap();
        while !state.calls.contains(wanted) {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn record(&self, call: Call) {
        self.state.lock().unwrap().calls.push(call);
        self.changed.notify_all();
    }

    fn enter_step(&self) -> Option<Mishap> {
        let mut state = self.state.lock().unwrap();
        while state.permits == Some(0) {
            state = self.changed.wait(state).unwrap();
        }
        state.permits = state.permits.map(|permits| permits - 1);
        state.mishaps.pop_front()
    }
}

/// Writes the tokens 0, 1, 2, … up to the job's `max_new_tokens`.
pub(crate) struct FakeEngine {
    script: Arc<Script>,
    info: EngineInfo,
    jobs: Vec<(Job, u32)>,
}

impl FakeEngine {
    pub(crate) fn boxed(script: &Arc<Script>) -> Box<dyn Engine> {
        let info = EngineInfo {
            parameters: 0,
            precision: "f32".to_owned(),
            kernels: "none".to_owned(),
            device: "cpu".to_owned(),
            image_size: 32,
            patch_size: 16,
            vocab_size: 100,
            max_positions: 64,
            threads: 1,
        };
        Box::new(Self { script: Arc::clone(script), info, jobs: Vec::new() })
    }
}

impl Engine for FakeEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn start(&mut self, job: Job) -> Result<()> {
        self.script.record(Call::Start(job.id));
        self.jobs.push((job, 0));
        Ok(())
    }

    fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let ids = self.jobs.iter().map(|(job, _)| job.id).collect();
        self.script.record(Call::Step(ids));
        let mut spared = None;
        match self.script.enter_step() {
            Some(Mishap::Fail) => return Err(Error::internal("the step failed as planned")),
            Some(Mishap::Panic) => panic!("the step panics as planned"),
            Some(Mishap::FailOne(id)) => spared = Some(id),
            None => {}
        }
        self.jobs.retain_mut(|(job, written)| {
            if spared == Some(job.id) {
                let error = Error::internal("this job fails as planned");
                events.push(Event::Failed { job: job.id, error });
                return false;
            }
            events.push(Event::Token { job: job.id, token: *written });
            *written += 1;
            let finished = *written as usize >= job.params.max_new_tokens;
            if finished {
                let sequence = Sequence {
                    ids: (0..*written).collect(),
                    generated: *written as usize,
                    confidence: 1.0,
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

    fn active(&self) -> usize {
        self.jobs.len()
    }
}

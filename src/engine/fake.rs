//! An engine without a model: it writes what a script says. For tests and benches of the layers
//! above, which need control over what happens when.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::{Engine, EngineInfo, Event, FinishReason, Job, JobId, Sequence};
use crate::error::{Error, Result};

/// What becomes of one job.
#[derive(Debug, Clone)]
pub enum Script {
    /// It writes these tokens, one a step, and is done with the last.
    Write(Vec<u32>),
    /// It writes these tokens and fails in the step behind them.
    Fail(Vec<u32>, Error),
    /// It cannot be started.
    Refuse(Error),
}

/// What the engine was asked to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`Engine::start`] of this job.
    Start(JobId),
    /// [`Engine::step`] with so many active jobs.
    Step(usize),
    /// [`Engine::cancel`] of this job.
    Cancel(JobId),
}

/// The calls so far; clones look at the same list.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    /// A copy of the list.
    #[must_use]
    pub fn list(&self) -> Vec<Call> {
        self.lock().clone()
    }

    fn push(&self, call: Call) {
        self.lock().push(call);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A scripted engine.
pub struct FakeEngine {
    info: EngineInfo,
    script: Box<dyn FnMut(&Job) -> Script + Send>,
    gate: Option<Receiver<()>>,
    jobs: Vec<Running>,
    calls: Calls,
}

struct Running {
    id: JobId,
    prompt: Vec<u32>,
    left: VecDeque<u32>,
    written: Vec<u32>,
    copies: usize,
    error: Option<Error>,
}

impl std::fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeEngine").field("info", &self.info).finish_non_exhaustive()
    }
}

impl FakeEngine {
    /// First token of every sequence.
    pub const FIRST: u32 = 0;

    /// An engine whose jobs do what `script` says of them.
    pub fn new(script: impl FnMut(&Job) -> Script + Send + 'static) -> Self {
        let info = EngineInfo {
            parameters: 0,
            precision: "f32".to_owned(),
            device: "cpu".to_owned(),
            image_size: 32,
            patch_size: 16,
            vocab_size: 100,
            max_positions: 64,
            threads: 1,
        };
        let script = Box::new(script);
        Self { info, script, gate: None, jobs: Vec::new(), calls: Calls::default() }
    }

    /// An engine whose jobs all write these tokens.
    #[must_use]
    pub fn writing(tokens: &[u32]) -> Self {
        let tokens = tokens.to_vec();
        Self::new(move |_| Script::Write(tokens.clone()))
    }

    /// Says something else about the model.
    #[must_use]
    pub fn with_info(mut self, info: EngineInfo) -> Self {
        self.info = info;
        self
    }

    /// Lets every step wait for a message, so that a test decides when it happens; once the
    /// sender is gone, steps no longer wait.
    #[must_use]
    pub fn with_gate(mut self, gate: Receiver<()>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// The list of calls, which goes on being written.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }
}

impl Running {
    /// One token; whether the job is still running.
    fn step(&mut self, events: &mut Vec<Event>) -> bool {
        let job = self.id;
        if let Some(token) = self.left.pop_front() {
            self.written.push(token);
            events.push(Event::Token { job, token });
            if !self.left.is_empty() || self.error.is_some() {
                return true;
            }
        } else if let Some(error) = self.error.take() {
            events.push(Event::Failed { job, error });
            return false;
        }
        let mut ids = vec![FakeEngine::FIRST];
        ids.extend(self.prompt.iter().chain(&self.written));
        let sequence = Sequence {
            ids,
            generated: self.written.len(),
            confidence: 0.5,
            score: None,
            finish_reason: FinishReason::Stop,
        };
        events.push(Event::Done { job, sequences: vec![sequence; self.copies] });
        false
    }
}

impl Engine for FakeEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn start(&mut self, job: Job) -> Result<()> {
        self.calls.push(Call::Start(job.id));
        let (left, error) = match (self.script)(&job) {
            Script::Write(tokens) => (tokens, None),
            Script::Fail(tokens, error) => (tokens, Some(error)),
            Script::Refuse(error) => return Err(error),
        };
        self.jobs.push(Running {
            id: job.id,
            prompt: job.prompt,
            left: left.into(),
            written: Vec::new(),
            copies: job.params.num_return_sequences,
            error,
        });
        Ok(())
    }

    fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        if let Some(gate) = &self.gate
            && gate.recv().is_err()
        {
            self.gate = None;
        }
        self.calls.push(Call::Step(self.jobs.len()));
        self.jobs.retain_mut(|job| job.step(events));
        Ok(())
    }

    fn cancel(&mut self, job: JobId) {
        self.calls.push(Call::Cancel(job));
        self.jobs.retain(|running| running.id != job);
    }

    fn active(&self) -> usize {
        self.jobs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{GenerationParams, PixelValues};

    fn job(id: u64) -> Job {
        let pixels = PixelValues { data: Vec::new(), width: 0, height: 0 };
        let params = GenerationParams::default();
        Job { id: JobId(id), pixels: pixels.into(), prompt: vec![9], params }
    }

    #[test]
    fn jobs_do_what_the_script_says() {
        let mut engine = FakeEngine::new(|job| match job.id.0 {
            0 => Script::Write(vec![5, 6]),
            1 => Script::Fail(vec![7], Error::internal("no")),
            2 => Script::Refuse(Error::internal("never")),
            _ => Script::Write(vec![1; 9]),
        });
        let calls = engine.calls();
        assert!(engine.start(job(2)).is_err());
        for id in [0, 1, 3] {
            engine.start(job(id)).unwrap();
        }
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        engine.cancel(JobId(3));
        engine.step(&mut events).unwrap();
        assert_eq!(engine.active(), 0);
        assert!(events.iter().any(|event| matches!(
            event,
            Event::Done { job: JobId(0), sequences } if sequences[0].ids == [0, 9, 5, 6]
        )));
        assert!(events.iter().any(|e| matches!(e, Event::Failed { job: JobId(1), .. })));
        assert_eq!(calls.list()[4..], [Call::Step(3), Call::Cancel(JobId(3)), Call::Step(2)]);
    }

    #[test]
    fn a_gate_holds_every_step_until_its_sender_is_gone() {
        let (open, gate) = std::sync::mpsc::channel();
        let mut engine = FakeEngine::writing(&[1, 2, 3]).with_gate(gate);
        engine.start(job(0)).unwrap();
        open.send(()).unwrap();
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        assert_eq!(events.len(), 1);
        drop(open);
        engine.step(&mut events).unwrap();
        engine.step(&mut events).unwrap();
        assert_eq!(events.len(), 4);
    }
}

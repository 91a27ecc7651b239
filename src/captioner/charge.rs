//! Who pays for captions.
//!
//! What a request will use is reserved before the work, when it is known which of its answers are new, and
//! settled before the caller gets the answer. Answers that are cached, or computed for somebody else
//! already, are counted and free.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{CaptionParams, Captioner, Choice, Priority};
use cutline_error::Result;

/// Work that is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Images.
    pub images: u64,
    /// Tokens at most: of the images, the prompt and the answer.
    pub tokens: u64,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Whether it is the first one of its request.
    pub first: bool,
    /// Whether it cost nothing.
    pub cached: bool,
    /// Tokens of the image and the prompt.
    pub prompt_tokens: u64,
    /// Tokens that were written.
    pub completion_tokens: u64,
}

/// The future of [`Account::settle`].
pub type Settling = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Who pays.
pub trait Account: Send + Sync + fmt::Debug {
    /// Sets `work` with `model` aside.
    ///
    /// # Errors
    /// The account may not use the model, or has used up what it may use.
    fn reserve(&self, model: &str, work: Work) -> Result<()>;

    /// Gives back what was set aside and not used.
    fn release(&self, work: Work);

    /// Takes `spent` instead of what was `reserved` for it. The future is ready when a crash cannot lose it.
    ///
    /// # Errors
    /// It could not be stored, and nothing is taken.
    fn settle(&self, model: &str, reserved: Work, spent: Spent) -> Settling;

    /// Counts an image that could not be answered.
    fn failed(&self, model: &str);

    /// Whether all its images wait with those of batches.
    fn is_low(&self) -> bool;
}

tokio::task_local! {
    /// Who pays for what this task asks for.
    static CALLER: Arc<dyn Account>;
}

/// Charges captions that `work` starts in this task to `account`.
pub async fn charged_to<T>(account: Arc<dyn Account>, work: impl Future<Output = T>) -> T {
    CALLER.scope(account, work).await
}

/// Who pays for captions that this task starts.
#[must_use]
pub fn current_account() -> Option<Arc<dyn Account>> {
    CALLER.try_with(Arc::clone).ok()
}

/// Who pays for the captions of a captioner.
#[derive(Debug, Clone, Default)]
pub(super) enum Payer {
    /// The account of the task that starts them, if there is one.
    #[default]
    Task,
    /// This one.
    Account(Arc<dyn Account>),
    /// Nobody: they are part of something that is paid for.
    Nobody { low: bool },
}

impl Captioner {
    /// The same captioner, whose captions are charged to `account`.
    #[must_use]
    pub fn charged_to(&self, account: Option<Arc<dyn Account>>) -> Self {
        let payer = account.map_or_else(Payer::default, Payer::Account);
        Self { inner: Arc::clone(&self.inner), payer }
    }

    /// The same captioner, for parts of something that is paid for.
    pub(super) fn uncharged(&self) -> Self {
        let low = self.priority(Priority::Interactive) == Priority::Bulk;
        Self { inner: Arc::clone(&self.inner), payer: Payer::Nobody { low } }
    }

    fn account(&self) -> Option<Arc<dyn Account>> {
        match &self.payer {
            Payer::Task => current_account(),
            Payer::Account(account) => Some(Arc::clone(account)),
            Payer::Nobody { .. } => None,
        }
    }

    /// The lane of a request that asks for `wanted`.
    pub(super) fn priority(&self, wanted: Priority) -> Priority {
        let low = match &self.payer {
            Payer::Nobody { low } => *low,
            _ => self.account().is_some_and(|account| account.is_low()),
        };
        if low { Priority::Bulk } else { wanted }
    }

    /// Another model, for who pays for this one.
    pub(super) fn paying(&self, other: &Self) -> Self {
        Self { inner: Arc::clone(&other.inner), payer: self.payer.clone() }
    }

    /// Reserves `new` images of one request to `model`, with at most `tokens` each.
    pub(super) fn charges(
        &self,
        model: &str,
        new: usize,
        tokens: usize,
    ) -> Result<Option<Charges>> {
        let Some(account) = self.account() else { return Ok(None) };
        let each = Work { images: 1, tokens: tokens as u64 };
        let all = Work { images: new as u64, tokens: (new as u64).saturating_mul(each.tokens) };
        let model: Arc<str> = model.into();
        account.reserve(&model, all)?;
        Ok(Some(Charges { account, model, each, left: new, answered: Arc::default() }))
    }

    /// The tokens of one image at most.
    pub(super) fn tokens_at_most(&self, prompt: usize, params: &CaptionParams) -> usize {
        self.info().image_tokens + prompt + params.max_new_tokens * params.num_captions
    }

    /// Reserves one image, does `work` without further charges, and settles. `written` is the number of
    /// tokens in the answer.
    pub(super) async fn charged<T>(
        &self,
        tokens: usize,
        work: impl Future<Output = Result<T>>,
        written: impl FnOnce(&T) -> usize,
    ) -> Result<T> {
        let charge =
            self.charges(&self.info().id, 1, tokens)?.and_then(|mut charges| charges.next(true));
        let done = work.await;
        match (charge, &done) {
            (Some(charge), Ok(answer)) => {
                let prompt = self.info().image_tokens;
                charge.settle(prompt, written(answer)).await?;
            }
            (Some(charge), Err(_)) => charge.fail(),
            (None, _) => {}
        }
        done
    }
}

/// What is reserved for a request.
#[derive(Debug)]
pub(super) struct Charges {
    account: Arc<dyn Account>,
    model: Arc<str>,
    each: Work,
    left: usize,
    answered: Arc<AtomicBool>,
}

impl Charges {
    /// The charge of one image; `new` says whether something is reserved for it.
    pub(super) fn next(&mut self, new: bool) -> Option<Charge> {
        let reserved = if new {
            self.left = self.left.checked_sub(1)?;
            self.each
        } else {
            Work::default()
        };
        let (account, model) = (Arc::clone(&self.account), Arc::clone(&self.model));
        Some(Charge { account, model, reserved, free: !new, answered: Arc::clone(&self.answered) })
    }
}

impl Drop for Charges {
    fn drop(&mut self) {
        let left = self.left as u64;
        if left > 0 {
            let tokens = left.saturating_mul(self.each.tokens);
            self.account.release(Work { images: left, tokens });
        }
    }
}

/// What is reserved for one image. Dropping it gives that back.
#[derive(Debug)]
pub(super) struct Charge {
    account: Arc<dyn Account>,
    model: Arc<str>,
    reserved: Work,
    free: bool,
    /// Whether an image of the request was answered.
    answered: Arc<AtomicBool>,
}

impl Charge {
    /// Settles for an answer with these captions. One that turns out to be `cached` is free.
    pub(super) async fn settle_for(
        mut self,
        prompt: usize,
        choices: &[Choice],
        cached: bool,
    ) -> Result<()> {
        self.free |= cached;
        self.settle(prompt, choices.iter().map(|choice| choice.tokens).sum()).await
    }

    async fn settle(mut self, prompt: usize, written: usize) -> Result<()> {
        let (cached, tokens) = (self.free, |tokens: usize| tokens as u64);
        let spent = Spent {
            first: !self.answered.swap(true, Ordering::Relaxed),
            cached,
            prompt_tokens: if cached { 0 } else { tokens(prompt) },
            completion_tokens: if cached { 0 } else { tokens(written) },
        };
        let reserved = std::mem::take(&mut self.reserved);
        let settling = self.account.settle(&self.model, reserved, spent);
        settling.await
    }

    /// The image could not be answered.
    pub(super) fn fail(self) {
        self.account.failed(&self.model);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.reserved != Work::default() {
            self.account.release(self.reserved);
        }
    }
}

//! One key: its limits, its budget, and what it has used of them.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use cutline_library::{
    ApiKey, Budget, BudgetPeriod, BudgetUnit, PriorityClass, Scope, UsageEntry, Used, format_time,
    period,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Clock;
use super::limits::{Bucket, Standing};
use super::writer::{Job, Settlement};
use crate::captioner::{Account, Settling, Spent, Work};
use crate::metrics::{KeyLimit, Metrics};
use cutline_error::{Error, ErrorKind, Result};

/// How often the time of the last use is stored, in milliseconds.
const TOUCH: i64 = 60_000;

/// What is left of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetStanding {
    /// What it is of.
    pub unit: BudgetUnit,
    /// The whole budget.
    pub limit: u64,
    /// What is neither used nor reserved.
    pub remaining: u64,
    /// The time until it begins again.
    pub reset: Duration,
    /// Whether more than the soft limit is used.
    pub warning: bool,
}

/// What is left of the limits of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standings {
    /// Of requests per minute.
    pub requests: Option<Standing>,
    /// Of images per minute.
    pub images: Option<Standing>,
    /// Of the budget.
    pub budget: Option<BudgetStanding>,
}

/// A key that clients use.
#[derive(Debug)]
pub struct KeyAccount {
    pub(super) id: i64,
    clock: Clock,
    jobs: Sender<Job>,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    key: ApiKey,
    requests: Option<Bucket>,
    images: Option<Bucket>,
    /// Requests in progress.
    active: u32,
    /// The beginnings of the present day and month, and what was used in them.
    day: (i64, Used),
    month: (i64, Used),
    reserved: Work,
    /// The period in which the soft limit was reported.
    warned: Option<i64>,
    /// When the last use was stored.
    touched: i64,
}

/// A request in progress.
#[derive(Debug)]
pub struct Visit {
    account: Arc<KeyAccount>,
}

impl Visit {
    /// The key that it is made with.
    #[must_use]
    pub fn account(&self) -> &Arc<KeyAccount> {
        &self.account
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = self.account.state.lock();
        state.active = state.active.saturating_sub(1);
    }
}

impl State {
    fn roll(&mut self, now: i64) {
        for (slot, length) in
            [(&mut self.day, BudgetPeriod::Day), (&mut self.month, BudgetPeriod::Month)]
        {
            let (begin, _) = period(now, length);
            if slot.0 != begin {
                *slot = (begin, Used::default());
            }
        }
    }

    /// The budget, what of it is used or reserved, and when it began and ends.
    fn budget(&mut self, now: i64) -> Option<(Budget, u64, (i64, i64))> {
        self.roll(now);
        let budget = self.key.rules.budget?;
        let (_, used) = match budget.period {
            BudgetPeriod::Day => self.day,
            BudgetPeriod::Month => self.month,
        };
        let reserved = amount(self.reserved, budget.unit);
        Some((budget, used.of(budget.unit).saturating_add(reserved), period(now, budget.period)))
    }

    fn check(&self, now: i64) -> Result<()> {
        let ApiKey { revoked_at, rules, .. } = &self.key;
        let forbidden = |what: &str| {
            let detail = format!("this API key {what}; ask the operator of the server for another");
            Err(Error::new(ErrorKind::Forbidden, detail))
        };
        if revoked_at.is_some() {
            return forbidden("was revoked");
        }
        if rules.expires_at.is_some_and(|end| end <= now) {
            return forbidden("has expired");
        }
        Ok(())
    }
}

fn amount(work: Work, unit: BudgetUnit) -> u64 {
    match unit {
        BudgetUnit::Images => work.images,
        BudgetUnit::Tokens => work.tokens,
    }
}

/// Whether `used` is more than the soft limit.
fn is_soft(budget: &Budget, used: u64) -> bool {
    // Budgets are far below the numbers that these cannot tell apart.
    used as f64 >= budget.soft_limit * budget.amount as f64
}

const fn unit(unit: BudgetUnit) -> &'static str {
    match unit {
        BudgetUnit::Images => "images",
        BudgetUnit::Tokens => "tokens",
    }
}

const fn length(period: BudgetPeriod) -> &'static str {
    match period {
        BudgetPeriod::Day => "day",
        BudgetPeriod::Month => "month",
    }
}

impl KeyAccount {
    pub(super) fn new(key: ApiKey, clock: Clock, jobs: Sender<Job>, metrics: Metrics) -> Self {
        let now = Instant::now();
        let bucket = |limit: Option<u32>| limit.map(|limit| Bucket::new(limit, now));
        let state = State {
            requests: bucket(key.rules.requests_per_minute),
            images: bucket(key.rules.images_per_minute),
            active: 0,
            day: (i64::MIN, Used::default()),
            month: (i64::MIN, Used::default()),
            reserved: Work::default(),
            warned: None,
            touched: key.last_used_at.unwrap_or(0),
            key,
        };
        Self { id: state.key.id, clock, jobs, metrics, state: Mutex::new(state) }
    }

    /// Takes over what the library says: the key, and what was used since the two times.
    pub(super) fn update(&self, key: ApiKey, day: (i64, Used), month: (i64, Used)) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let rules = &key.rules;
        if state.key.rules.requests_per_minute != rules.requests_per_minute {
            state.requests = Bucket::adjusted(state.requests, rules.requests_per_minute, now);
        }
        if state.key.rules.images_per_minute != rules.images_per_minute {
            state.images = Bucket::adjusted(state.images, rules.images_per_minute, now);
        }
        state.key = key;
        (state.day, state.month) = (day, month);
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.state.lock().key.rules.name.clone()
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Whether it has a scope.
    #[must_use]
    pub fn has(&self, scope: Scope) -> bool {
        self.state.lock().key.rules.scopes.contains(&scope)
    }

    /// Whether it has a limit of requests, which holds instead of the server's.
    #[must_use]
    pub fn limits_requests(&self) -> bool {
        self.state.lock().requests.is_some()
    }

    /// Checks whether a request may be made that needs `scope`.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden) or [`InsufficientScope`](ErrorKind::InsufficientScope).
    pub fn check(&self, scope: Option<Scope>) -> Result<()> {
        let state = self.state.lock();
        state.check(self.clock.now())?;
        match scope {
            Some(scope) if !state.key.rules.scopes.contains(&scope) => Err(Error::new(
                ErrorKind::InsufficientScope,
                format!(
                    "this API key has not the scope {}; use another key, or ask the operator of the server \
                     for it",
                    scope.as_str()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// [`RateLimited`](ErrorKind::RateLimited). Such requests do not count.
    pub fn enter(self: &Arc<Self>) -> Result<Visit> {
        let time = self.clock.now();
        let now = Instant::now();
        let mut state = self.state.lock();
        state.check(time)?;
        if let Some(most) = state.key.rules.parallel
            && state.active >= most
        {
            self.metrics.key_refused(KeyLimit::Parallel);
            let detail = format!(
                "this API key may have {most} requests at a time; wait until one has ended"
            );
            return Err(Error::new(ErrorKind::RateLimited, detail));
        }
        if let Some(bucket) = &mut state.requests {
            if let Some(wait) = bucket.wait(1, now) {
                self.metrics.key_refused(KeyLimit::Requests);
                return Err(limited("requests", bucket.standing(now).limit, wait));
            }
            bucket.take(1);
        }
        state.active = state.active.saturating_add(1);
        if time - state.touched >= TOUCH {
            state.touched = time;
            self.count("", Used::default(), time);
        }
        Ok(Visit { account: Arc::clone(self) })
    }

    /// What is left of its limits.
    #[must_use]
    pub fn standings(&self) -> Standings {
        let (time, now) = (self.clock.now(), Instant::now());
        let mut state = self.state.lock();
        let budget = state.budget(time).map(|(budget, used, (_, end))| BudgetStanding {
            unit: budget.unit,
            limit: budget.amount,
            remaining: budget.amount.saturating_sub(used),
            reset: milliseconds(end - time),
            warning: is_soft(&budget, used),
        });
        let standing = |bucket: &mut Option<Bucket>| bucket.as_mut().map(|b| b.standing(now));
        Standings {
            requests: standing(&mut state.requests),
            images: standing(&mut state.images),
            budget,
        }
    }

    /// Counts without waiting for the disk.
    fn count(&self, model: &str, used: Used, at: i64) {
        let entry = UsageEntry { key: self.id, model: model.to_owned(), at, used };
        // Without the thread, the server is stopping.
        let _ = self.jobs.send(Job::Count(entry));
    }

    /// Usage is in the library.
    pub(super) fn settled(&self, settlement: &Settlement) {
        let mut state = self.state.lock();
        give_back(&mut state.reserved, settlement.reserved);
        state.roll(self.clock.now());
        let UsageEntry { at, used, .. } = &settlement.entry;
        if period(*at, BudgetPeriod::Day).0 == state.day.0 {
            state.day.1.add(used);
        }
        if period(*at, BudgetPeriod::Month).0 == state.month.0 {
            state.month.1.add(used);
        }
    }

    /// Reports once a period that the soft limit is reached.
    fn warn(&self, state: &mut State, budget: &Budget, used: u64, begin: i64) {
        if !is_soft(budget, used) || state.warned == Some(begin) {
            return;
        }
        state.warned = Some(begin);
        self.metrics.budget_warned();
        tracing::warn!(
            key = state.key.rules.name,
            used,
            amount = budget.amount,
            "an API key has used more than {} % of its budget of {} for this {}",
            (budget.soft_limit * 100.0).round(),
            unit(budget.unit),
            length(budget.period),
        );
    }
}

fn limited(what: &str, most: u64, wait: Duration) -> Error {
    let detail =
        format!("this API key may send {most} {what} per minute; wait as long as Retry-After says");
    Error::new(ErrorKind::RateLimited, detail).with_retry_after(wait)
}

fn milliseconds(time: i64) -> Duration {
    Duration::from_millis(u64::try_from(time).unwrap_or(0))
}

fn give_back(reserved: &mut Work, work: Work) {
    reserved.images = reserved.images.saturating_sub(work.images);
    reserved.tokens = reserved.tokens.saturating_sub(work.tokens);
}

impl Account for KeyAccount {
    fn reserve(&self, model: &str, work: Work) -> Result<()> {
        let (time, now) = (self.clock.now(), Instant::now());
        let mut state = self.state.lock();
        let models = &state.key.rules.models;
        if !models.is_empty() && !models.iter().any(|one| one == model) {
            let detail = format!(
                "this API key may not use the model {model}, but {}; name one of these",
                models.join(", ")
            );
            return Err(Error::new(ErrorKind::InsufficientScope, detail));
        }
        if work.images == 0 {
            return Ok(());
        }
        let budget = state.budget(time);
        if let Some((budget, used, (_, end))) = budget
            && used.saturating_add(amount(work, budget.unit)) > budget.amount
        {
            self.metrics.key_refused(KeyLimit::Budget);
            let detail = format!(
                "the budget of this API key, {} {} a {}, is used up, or what is left is too little for this \
                 request; it begins again at {}, or ask the operator of the server for more",
                budget.amount,
                unit(budget.unit),
                length(budget.period),
                format_time(end)
            );
            let error = Error::new(ErrorKind::QuotaExhausted, detail);
            return Err(error.with_retry_after(milliseconds(end - time)));
        }
        if let Some(bucket) = &mut state.images {
            if let Some(wait) = bucket.wait(work.images, now) {
                self.metrics.key_refused(KeyLimit::Images);
                return Err(limited("images", bucket.standing(now).limit, wait));
            }
            bucket.take(work.images);
        }
        state.reserved.images = state.reserved.images.saturating_add(work.images);
        state.reserved.tokens = state.reserved.tokens.saturating_add(work.tokens);
        if let Some((budget, used, (begin, _))) = budget {
            let used = used.saturating_add(amount(work, budget.unit));
            self.warn(&mut state, &budget, used, begin);
        }
        Ok(())
    }

    fn release(&self, work: Work) {
        give_back(&mut self.state.lock().reserved, work);
    }

    fn settle(&self, model: &str, reserved: Work, spent: Spent) -> Settling {
        let used = Used {
            requests: u64::from(spent.first),
            images: 1,
            cached: u64::from(spent.cached),
            errors: 0,
            prompt_tokens: spent.prompt_tokens,
            completion_tokens: spent.completion_tokens,
        };
        self.metrics.charged(spent.cached);
        let entry =
            UsageEntry { key: self.id, model: model.to_owned(), at: self.clock.now(), used };
        let (answer, stored) = oneshot::channel();
        let job = Job::Settle(Settlement { entry, reserved, answer });
        let sent = self.jobs.send(job);
        Box::pin(async move {
            let stopped = || Error::internal("the thread that stores usage has stopped");
            sent.map_err(|_| stopped())?;
            stored.await.map_err(|_| stopped())?
        })
    }

    fn failed(&self, model: &str) {
        let used = Used { errors: 1, ..Used::default() };
        self.count(model, used, self.clock.now());
    }

    fn is_low(&self) -> bool {
        self.state.lock().key.rules.priority == PriorityClass::Low
    }
}

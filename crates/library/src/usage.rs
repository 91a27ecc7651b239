//! What keys have used, by key, model and day.

use std::str::FromStr;

use cutline_error::{Error, Result};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::keys::BudgetUnit;

/// What was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Used {
    /// Requests that were answered.
    pub requests: u64,
    /// Images that were answered, in them.
    pub images: u64,
    /// How many of these were computed already. They are free.
    pub cached: u64,
    /// Images that could not be answered.
    pub errors: u64,
    /// Tokens of images and prompts, without those of cached answers.
    pub prompt_tokens: u64,
    /// Tokens that were written, without those of cached answers.
    pub completion_tokens: u64,
}

impl Used {
    /// What counts for a budget.
    #[must_use]
    pub fn of(&self, unit: BudgetUnit) -> u64 {
        match unit {
            BudgetUnit::Images => self.images.saturating_sub(self.cached),
            BudgetUnit::Tokens => self.prompt_tokens.saturating_add(self.completion_tokens),
        }
    }

    /// Adds another usage.
    pub fn add(&mut self, other: &Self) {
        let Self { requests, images, cached, errors, prompt_tokens, completion_tokens } = other;
        self.requests = self.requests.saturating_add(*requests);
        self.images = self.images.saturating_add(*images);
        self.cached = self.cached.saturating_add(*cached);
        self.errors = self.errors.saturating_add(*errors);
        self.prompt_tokens = self.prompt_tokens.saturating_add(*prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(*completion_tokens);
    }
}

/// Usage to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageEntry {
    /// The number of the key.
    pub key: i64,
    /// The model.
    pub model: String,
    /// When, in milliseconds since 1970.
    pub at: i64,
    /// How much. If it is nothing, only the time of the last use is kept.
    pub used: Used,
}

/// How usage is added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageGroup {
    /// By key.
    #[default]
    Key,
    /// By model.
    Model,
    /// By day.
    Day,
}

impl UsageGroup {
    /// The name in the interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Model => "model",
            Self::Day => "day",
        }
    }
}

impl FromStr for UsageGroup {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Key, Self::Model, Self::Day];
        all.into_iter().find(|group| group.as_str() == text).ok_or_else(|| {
            Error::parameter("group_by", "group_by is one of key, model, day; correct it")
        })
    }
}

/// Which usage is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageQuery {
    /// The first day: a time in it, in milliseconds since 1970.
    pub from: i64,
    /// The last day.
    pub to: i64,
    /// Only of this key.
    pub key: Option<i64>,
    /// How it is added up.
    pub group: UsageGroup,
}

/// The usage of one key, of one model or on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct UsageRow {
    /// The number of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<i64>,
    /// The name of the key, the model, or the day: `2026-11-27`, UTC.
    pub name: String,
    /// How much.
    #[serde(flatten)]
    pub used: Used,
}

/// The day that a time is in.
pub(crate) const fn day(time: i64) -> i64 {
    time.div_euclid(crate::time::DAY)
}

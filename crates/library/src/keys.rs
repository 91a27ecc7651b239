//! Keys of clients, and what each may do.
//!
//! A key is random and shown once; the library has only its hash.

use std::fmt;
use std::str::FromStr;

use cutline_error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::usage;

/// The beginning of every key, by which people and scanners of leaked secrets know them.
const MARK: &str = "cutline_";
/// Random bytes of a key.
const RANDOM: usize = 20;
/// Digits of a key that are shown in lists.
const SHOWN: usize = 8;
/// The longest name of a key or a model, in characters.
const MAX_NAME: usize = 100;
/// Models that a key may name.
const MAX_MODELS: usize = 100;
/// The largest limit. Databases have no larger numbers, and sums of these fit as well.
const MAX_LIMIT: u64 = 1_000_000_000_000;

/// What a key is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub enum Scope {
    /// Captions, in every contract.
    #[serde(rename = "caption")]
    Caption,
    /// Tags from allowed lists.
    #[serde(rename = "tags")]
    Tags,
    /// Reading the library.
    #[serde(rename = "library:read")]
    LibraryRead,
    /// Changing the library.
    #[serde(rename = "library:write")]
    LibraryWrite,
    /// Prompts and their versions.
    #[serde(rename = "prompts")]
    Prompts,
    /// Keys, and the usage of all of them.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Caption,
        Self::Tags,
        Self::LibraryRead,
        Self::LibraryWrite,
        Self::Prompts,
        Self::Admin,
    ];

    /// The name in the interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Tags => "tags",
            Self::LibraryRead => "library:read",
            Self::LibraryWrite => "library:write",
            Self::Prompts => "prompts",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| {
            Error::parameter(
                "scopes",
                "a scope is one of caption, tags, library:read, library:write, prompts, admin; correct it",
            )
        })
    }
}

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetUnit {
    /// Images that were captioned or tagged.
    Images,
    /// Tokens that were read and written for them.
    Tokens,
}

/// How long a budget lasts. Days and months are those of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetPeriod {
    /// A day.
    Day,
    /// A calendar month.
    Month,
}

/// What a key may use in a day or a month.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// How many.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_u64)]
    pub amount: u64,
    /// Of what.
    pub unit: BudgetUnit,
    /// In which time.
    pub period: BudgetPeriod,
    /// The share from which on answers carry a warning, 0–1.
    #[serde(default = "soft_limit")]
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub soft_limit: f64,
}

fn soft_limit() -> f64 {
    0.8
}

/// Which requests come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PriorityClass {
    /// As without a key: single images before those of batches.
    #[default]
    Normal,
    /// All its images wait with those of batches.
    Low,
}

/// What a key may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRules {
    /// A name for people; no two keys have the same.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
    /// What it is for.
    #[serde(default = "caption_only")]
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// The models that it may use; all if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Requests per minute, instead of the limit of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub requests_per_minute: Option<u32>,
    /// Images per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub images_per_minute: Option<u32>,
    /// Requests at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub parallel: Option<u32>,
    /// What it may use in a day or a month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Which requests come first.
    #[serde(default)]
    pub priority: PriorityClass,
    /// When it ends, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub expires_at: Option<i64>,
}

fn caption_only() -> Vec<Scope> {
    vec![Scope::Caption]
}

impl KeyRules {
    /// Captions without limits.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            scopes: caption_only(),
            models: Vec::new(),
            requests_per_minute: None,
            images_per_minute: None,
            parallel: None,
            budget: None,
            priority: PriorityClass::default(),
            expires_at: None,
        }
    }

    /// Brings them into their stored form.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter): a name or a number is not usable.
    pub(crate) fn normalise(&mut self) -> Result<()> {
        self.name = self.name.trim().to_owned();
        check_name("name", &self.name)?;
        self.scopes.sort_unstable();
        self.scopes.dedup();
        if self.scopes.is_empty() {
            return Err(Error::parameter(
                "scopes",
                "a key without a scope opens nothing; name one",
            ));
        }
        if self.models.len() > MAX_MODELS {
            let detail = format!("a key may name {MAX_MODELS} models; leave models out for all");
            return Err(Error::parameter("models", detail));
        }
        self.models.iter().try_for_each(|model| check_name("models", model))?;
        for (name, limit) in [
            ("requests_per_minute", self.requests_per_minute),
            ("images_per_minute", self.images_per_minute),
            ("parallel", self.parallel),
        ] {
            if limit == Some(0) {
                let detail = format!("{name} must be at least 1; leave it out for no limit");
                return Err(Error::parameter(name, detail));
            }
        }
        if let Some(Budget { amount, soft_limit, .. }) = self.budget {
            let soft = (0.0..=1.0).contains(&soft_limit);
            if !(1..=MAX_LIMIT).contains(&amount) || !soft {
                return Err(Error::parameter(
                    "budget",
                    format!(
                        "a budget has an amount from 1 to {MAX_LIMIT} and a soft_limit from 0 to 1; \
                         correct it"
                    ),
                ));
            }
        }
        if self.expires_at.is_some_and(|time| time < 0) {
            return Err(Error::parameter("expires_at", "a key cannot end before 1970; correct it"));
        }
        Ok(())
    }
}

fn check_name(what: &'static str, name: &str) -> Result<()> {
    let fits = (1..=MAX_NAME).contains(&name.chars().count());
    if fits && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::parameter(
        what,
        format!("{what} must have 1 to {MAX_NAME} characters, without line breaks; correct it"),
    ))
}

/// The hash of a key, and the part of it that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretHash {
    /// The blake3 hash of the whole key.
    pub hash: [u8; 32],
    /// The beginning of the key.
    pub prefix: String,
}

/// A key that was just made. It cannot be printed by accident.
pub struct Secret(String);

impl Secret {
    /// A new key of 160 random bits.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal): the system has no random numbers.
    pub fn generate() -> Result<Self> {
        let mut bytes = [0_u8; RANDOM];
        getrandom::fill(&mut bytes).map_err(|error| {
            Error::internal("the system has no random numbers").with_source(error.to_string())
        })?;
        let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok(Self(format!("{MARK}{digits}")))
    }

    /// The key itself, to show once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash {
            hash: *blake3::hash(self.0.as_bytes()).as_bytes(),
            prefix: self.0.chars().take(MARK.len() + SHOWN).collect(),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A key in the library.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ApiKey {
    /// Its number.
    pub id: i64,
    /// The beginning of the key, to tell it from others.
    pub prefix: String,
    /// What it may do.
    #[serde(flatten)]
    pub rules: KeyRules,
    /// When it was made, in milliseconds since 1970.
    pub created_at: i64,
    /// When it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub revoked_at: Option<i64>,
    /// When it was last used, to the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub last_used_at: Option<i64>,
    /// Until when the key from before the last rotation is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub previous_valid_until: Option<i64>,
    /// The hashes that stand for it, and until when each does.
    #[serde(skip)]
    pub hashes: Vec<([u8; 32], Option<i64>)>,
}

/// A change of keys.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyChange {
    /// A new key.
    Create {
        /// What it may do.
        rules: KeyRules,
        /// What is kept of it.
        secret: SecretHash,
    },
    /// It may do other things.
    Edit {
        /// Its number.
        id: i64,
        /// What it may do from now on.
        rules: KeyRules,
    },
    /// Another secret stands for it. Those before are valid for a while.
    Rotate {
        /// Its number.
        id: i64,
        /// The new secret.
        secret: SecretHash,
        /// How long the one before is valid, in milliseconds.
        grace: i64,
    },
    /// It is never valid again.
    Revoke {
        /// Its number.
        id: i64,
    },
}

impl KeyChange {
    pub(crate) fn normalise(&mut self) -> Result<()> {
        match self {
            Self::Create { rules, .. } | Self::Edit { rules, .. } => rules.normalise(),
            Self::Rotate { .. } | Self::Revoke { .. } => Ok(()),
        }
    }
}

/// The first times of the day and of the month that `time` is in, and of those after them.
#[must_use]
pub fn period(time: i64, period: BudgetPeriod) -> (i64, i64) {
    let today = usage::day(time) * crate::time::DAY;
    match period {
        BudgetPeriod::Day => (today, today + crate::time::DAY),
        BudgetPeriod::Month => crate::time::month(today),
    }
}

pub(crate) fn no_key(id: i64) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no key {id}; look at the list of keys"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::parse_time;

    #[test]
    fn secrets_are_long_and_hidden() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(one.reveal(), other.reveal());
        let digits = one.reveal().strip_prefix(MARK).unwrap();
        assert!(digits.len() * 4 >= 128, "{digits}");
        assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(format!("{one:?}"), "Secret");
        let SecretHash { hash, prefix } = one.hash();
        assert_eq!(hash, *blake3::hash(one.reveal().as_bytes()).as_bytes());
        assert_eq!(prefix, one.reveal()[..16]);
    }

    #[test]
    fn rules_are_checked() {
        let good = |change: fn(&mut KeyRules)| {
            let mut rules = KeyRules::new(" app ");
            change(&mut rules);
            rules.normalise().map(|()| rules)
        };
        assert_eq!(good(|_| {}).unwrap().name, "app");
        let twice = good(|rules| rules.scopes = vec![Scope::Tags, Scope::Caption, Scope::Tags]);
        assert_eq!(twice.unwrap().scopes, [Scope::Caption, Scope::Tags]);
        for (wrong, field) in [
            (good(|rules| rules.name = " ".into()), "name"),
            (good(|rules| rules.name = "a\nb".into()), "name"),
            (good(|rules| rules.name = "x".repeat(101)), "name"),
            (good(|rules| rules.scopes.clear()), "scopes"),
            (good(|rules| rules.models = vec![String::new()]), "models"),
            (good(|rules| rules.parallel = Some(0)), "parallel"),
            (good(|rules| rules.expires_at = Some(-1)), "expires_at"),
            (good(|rules| rules.budget = Some(budget(0, 0.5))), "budget"),
            (good(|rules| rules.budget = Some(budget(1, 1.5))), "budget"),
            (good(|rules| rules.budget = Some(budget(1, f64::NAN))), "budget"),
        ] {
            assert_eq!(wrong.unwrap_err().field(), Some(field));
        }
    }

    fn budget(amount: u64, soft_limit: f64) -> Budget {
        Budget { amount, unit: BudgetUnit::Images, period: BudgetPeriod::Day, soft_limit }
    }

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        for (time, start, end) in [
            ("2026-11-30T23:59:59Z", "2026-11-01", "2026-12-01"),
            ("2026-12-01T00:00:00Z", "2026-12-01", "2027-01-01"),
            ("2028-02-29T12:00:00Z", "2028-02-01", "2028-03-01"),
            ("1970-01-01T00:00:00Z", "1970-01-01", "1970-02-01"),
        ] {
            let times = period(parse_time(time).unwrap(), BudgetPeriod::Month);
            assert_eq!(times, (parse_time(start).unwrap(), parse_time(end).unwrap()), "{time}");
        }
        let times = period(parse_time("2026-11-30T23:59:59Z").unwrap(), BudgetPeriod::Day);
        assert_eq!(times, (parse_time("2026-11-30").unwrap(), parse_time("2026-12-01").unwrap()));
    }
}

//! From the text of a setting to its value. An error says what to give instead.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use tracing::Level;

use super::HfTask;
use crate::cache::CacheScope;
use crate::engine::source::ModelSource;
use crate::engine::{GpuKernels, KernelChoice, Precision};

/// The longest time that can be set: a day.
const MAX_SECONDS: f64 = 86_400.0;

/// What parses the text of one setting.
pub(super) trait Parser<T>:
    Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
{
}

impl<T, F: Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static> Parser<T> for F {}

/// A whole number. `_` may separate groups of digits, as in Python.
pub(super) fn number<N>(least: N, most: N) -> impl Parser<N>
where
    N: FromStr + PartialOrd + Display + Copy + Send + Sync + 'static,
{
    move |text| {
        let number = text.replace('_', "").parse().ok();
        number
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("give a whole number from {least} to {most}"))
    }
}

/// A number, or `None` for `auto`.
pub(super) fn number_or_auto<N>(least: N, most: N) -> impl Parser<Option<N>>
where
    N: FromStr + PartialOrd + Display + Copy + Send + Sync + 'static,
{
    move |text| {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(None);
        }
        number(least, most)(text)
            .map(Some)
            .map_err(|_| format!("give auto, or a whole number from {least} to {most}"))
    }
}

pub(super) fn seconds(least: f64) -> impl Parser<Duration> {
    move |text| match text.parse() {
        Ok(seconds) if (least..=MAX_SECONDS).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("give a number of seconds from {least} to {MAX_SECONDS}")),
    }
}

/// One of `choices`, in any case.
pub(super) fn choice<T>(choices: Vec<(&'static str, T)>) -> impl Parser<T>
where
    T: Copy + Send + Sync + 'static,
{
    move |text| {
        let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            format!("give one of {}", names.join(", "))
        })
    }
}

pub(super) fn flag() -> Vec<(&'static str, bool)> {
    let [yes, no] = [["true", "1", "yes", "on"], ["false", "0", "no", "off"]];
    yes.into_iter().zip(no).flat_map(|(yes, no)| [(yes, true), (no, false)]).collect()
}

pub(super) fn use_gpu() -> Vec<(&'static str, Option<bool>)> {
    let flags = [("true", true), ("1", true), ("false", false), ("0", false)];
    [("auto", None)].into_iter().chain(flags.map(|(name, value)| (name, Some(value)))).collect()
}

/// Where images may be fetched from; `FETCH_HOSTS` are read apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchUrls {
    Off,
    Public,
    List,
}

pub(super) fn fetch_urls() -> Vec<(&'static str, FetchUrls)> {
    vec![("off", FetchUrls::Off), ("public", FetchUrls::Public), ("list", FetchUrls::List)]
}

/// The engine decides which of them this build and this device have.
pub(super) fn precision() -> Vec<(&'static str, Precision)> {
    [Precision::Auto, Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8]
        .map(|precision| (precision.as_str(), precision))
        .into()
}

/// The engine decides which of them this CPU has.
pub(super) fn cpu_kernels() -> Vec<(&'static str, KernelChoice)> {
    KernelChoice::all().collect()
}

pub(super) fn gpu_kernels() -> Vec<(&'static str, GpuKernels)> {
    GpuKernels::ALL.map(|kernels| (kernels.as_str(), kernels)).into()
}

pub(super) fn hf_task() -> Vec<(&'static str, HfTask)> {
    vec![
        ("image-to-text", HfTask::ImageToText),
        ("image-classification", HfTask::ImageClassification),
    ]
}

/// The levels, and the names that Python has for them.
pub(super) fn log_level() -> Vec<(&'static str, Level)> {
    vec![
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
        ("warning", Level::WARN),
        ("critical", Level::ERROR),
    ]
}

pub(super) fn address(text: &str) -> Result<String, String> {
    if text.starts_with("https://") || text.starts_with("http://") {
        return Ok(text.to_owned());
    }
    Err("give an address that starts with https:// or http://".to_owned())
}

/// Models with their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Models(pub(super) Vec<(String, ModelSource)>);

pub(super) fn models(text: &str) -> Result<Models, String> {
    let usual = "give name=MODEL, separated by commas; MODEL is what the setting MODEL takes";
    let mut models: Vec<(String, ModelSource)> = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, source) = pair.split_once('=').ok_or(usual)?;
        let name = name.trim();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
            return Err("give names of letters, digits, or one of - _ . /".to_owned());
        }
        if models.iter().any(|(other, _)| other == name) {
            return Err(format!("the name {name} is given twice; rename one"));
        }
        let source = source.parse::<ModelSource>().map_err(|error| format!("{name}: {error}"))?;
        models.push((name.to_owned(), source));
    }
    if models.is_empty() { Err(usual.to_owned()) } else { Ok(Models(models)) }
}

pub(super) fn cache_scope() -> Vec<(&'static str, CacheScope)> {
    vec![("exact", CacheScope::Exact), ("model", CacheScope::Model)]
}

pub(super) fn redis_address(text: &str) -> Result<String, String> {
    if text.starts_with("redis://") || text.starts_with("rediss://") {
        return Ok(text.to_owned());
    }
    Err("give an address that starts with redis:// or rediss://".to_owned())
}

pub(super) fn secret(text: &str) -> Result<String, String> {
    if text.chars().count() >= 16 {
        return Ok(text.to_owned());
    }
    Err("give at least 16 characters".to_owned())
}

/// Names that are separated by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names(pub(super) Vec<String>);

pub(super) fn names(text: &str) -> Result<Names, String> {
    let names: Vec<String> =
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        return Err("give names separated by commas, or leave it out".to_owned());
    }
    Ok(Names(names))
}

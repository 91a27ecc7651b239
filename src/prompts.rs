//! Prompts of a library: which version a request gets, what is saved, and what experiments show.

use cutline_library::prompts::{
    Experiment, ExposureRow, PromptChange, PromptVersion, Variant, VersionChoice, no_experiment,
    no_prompt,
};
use cutline_library::{Applied, Author, Change, ContentHash, FeedbackKind, Field, Store};
use cutline_prompts::{
    Content, Decision, Metric, Outcome, Reference, Report, Variables, Which, assign, bucket,
    check_label, check_name, report,
};
use serde_json::Value;

use crate::captioner::{CaptionParams, RecipeVersion, Style};
use cutline_error::{Error, ErrorKind, Result};

/// Variants of an experiment.
const MAX_VARIANTS: usize = 4;

/// What may always get the same variant.
const UNITS: [&str; 3] = ["key", "user", "photo"];

/// The parameters with the version of the prompt that they name, for one photo. `client` tells keys apart.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is no such version. As [`CaptionParams::with_recipe`].
pub(crate) fn resolve(
    store: &dyn Store,
    params: &CaptionParams,
    client: &str,
    photo: Option<&ContentHash>,
) -> Result<CaptionParams> {
    let Some(template) = &params.template else { return Ok(params.clone()) };
    let reference: Reference = template.parse()?;
    let unit = |experiment: &Experiment| match experiment.unit.as_str() {
        "photo" => photo.map(ToString::to_string),
        "user" => Some(params.user.clone().unwrap_or_else(|| client.to_owned())),
        _ => Some(client.to_owned()),
    };
    let version = chosen(store, &reference, unit)?;
    params.with_recipe(version, about(store, photo)?)
}

/// The version for a unit, or the one that the reference names.
fn chosen(
    store: &dyn Store,
    reference: &Reference,
    unit: impl Fn(&Experiment) -> Option<String>,
) -> Result<RecipeVersion> {
    if reference.which == Which::Served {
        let running = store.experiments(true)?;
        let running = running.into_iter().find(|one| one.prompt == reference.name);
        if let Some(experiment) = running
            && let Some(unit) = unit(&experiment)
        {
            let weights: Vec<u32> = experiment.variants.iter().map(|one| one.weight).collect();
            let bucket = bucket(&experiment.salt, &experiment.name, &unit);
            let variant = assign(&weights, bucket).and_then(|at| experiment.variants.get(at));
            if let Some(Variant { version, .. }) = variant {
                let found = numbered(store, reference, &VersionChoice::Number(*version))?;
                let experiment = Some((experiment.id, experiment.name));
                return Ok(RecipeVersion { experiment, ..read(&found)? });
            }
        }
    }
    read(&numbered(store, reference, &choice(reference))?)
}

fn choice(reference: &Reference) -> VersionChoice {
    match &reference.which {
        Which::Served => VersionChoice::Label(Reference::PRODUCTION.to_owned()),
        Which::Label(label) => VersionChoice::Label(label.clone()),
        Which::Version(number) => VersionChoice::Number(*number),
    }
}

/// The version that a reference names, without experiments.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is none.
pub(crate) fn version(store: &dyn Store, reference: &Reference) -> Result<PromptVersion> {
    numbered(store, reference, &choice(reference))
}

fn numbered(
    store: &dyn Store,
    reference: &Reference,
    choice: &VersionChoice,
) -> Result<PromptVersion> {
    if let Some(found) = store.prompt_version(&reference.name, choice)? {
        return Ok(found);
    }
    if store.prompt(&reference.name)?.is_none() {
        return Err(no_prompt(&reference.name));
    }
    let what = match choice {
        VersionChoice::Label(label) => format!("version with the label {label}"),
        VersionChoice::Number(number) => format!("version {number}"),
    };
    Err(Error::new(
        ErrorKind::NotFound,
        format!(
            "the prompt {} has no {what}; give the label to a version, or name another one",
            reference.name
        ),
    ))
}

/// What a version says.
///
/// # Errors
/// [`Io`](ErrorKind::Io): a newer program wrote it.
pub(crate) fn content(version: &PromptVersion) -> Result<Content> {
    serde_json::from_str(&version.content).map_err(|error| {
        let PromptVersion { name, version, .. } = version;
        let detail = format!(
            "version {version} of the prompt {name} was written by another program; update this one"
        );
        Error::new(ErrorKind::Io, detail).with_source(error)
    })
}

fn read(version: &PromptVersion) -> Result<RecipeVersion> {
    Ok(RecipeVersion {
        id: version.id,
        name: format!("{}:{}", version.name, version.version),
        digest: version.digest.clone(),
        content: content(version)?,
        experiment: None,
    })
}

/// What the library knows about a photo, for templates; of a photo that it does not have, everything is empty.
///
/// # Errors
/// The library cannot be read.
pub(crate) fn about(store: &dyn Store, photo: Option<&ContentHash>) -> Result<Variables> {
    let asset = photo.map(|photo| store.asset(photo)).transpose()?.flatten();
    let Some(asset) = asset else { return Ok(about_nothing()) };
    let text = |field| asset.text(field, "en").map(|text| text.text.clone()).unwrap_or_default();
    let tags: Value = text(Field::Tags).lines().map(str::to_owned).collect();
    Ok(photo_variable([
        ("name", asset.display_name().into()),
        ("title", text(Field::Title).into()),
        ("caption", text(Field::Caption).into()),
        ("alt_text", text(Field::AltText).into()),
        ("tags", tags),
    ]))
}

fn about_nothing() -> Variables {
    let nothing = || Value::String(String::new());
    photo_variable([
        ("name", nothing()),
        ("title", nothing()),
        ("caption", nothing()),
        ("alt_text", nothing()),
        ("tags", Value::Array(Vec::new())),
    ])
}

fn photo_variable(facts: [(&str, Value); 5]) -> Variables {
    let photo: Variables =
        facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let mut context = Variables::new();
    context.insert("photo".to_owned(), Value::Object(photo));
    context
}

/// Checks what a version is to say.
///
/// # Errors
/// As [`Content::checked`]; the style is unknown, or options contradict it.
pub(crate) fn checked(content: Content) -> Result<Content> {
    let content = content.checked()?;
    let style = match content.style.as_deref() {
        None => Style::Caption,
        Some(name) => Style::named(name).ok_or_else(|| {
            Error::parameter(
                "style",
                "the style is caption, alt_text, engaging, title or keywords; correct it",
            )
        })?,
    };
    let max_chars = content.max_chars.map(|most| most as usize);
    let params =
        CaptionParams { style, max_chars, emoji: content.emoji, ..CaptionParams::default() };
    params.validate()?;
    Ok(content)
}

/// Saves a version, and gives it a label. Returns its number.
///
/// # Errors
/// As [`checked`]; the label is protected.
pub(crate) fn save(
    store: &dyn Store,
    name: &str,
    description: Option<String>,
    content: Content,
    message: String,
    author: &Author,
) -> Result<u32> {
    check_name(name)?;
    if name == "render" {
        // Its address belongs to something else.
        return Err(Error::parameter("name", "no prompt is named render; use another name"));
    }
    let content = serde_json::to_string(&checked(content)?)
        .map_err(|error| Error::internal("a version cannot be written").with_source(error))?;
    let change = PromptChange::Save {
        name: name.to_owned(),
        description,
        content,
        message,
        author: author.clone(),
    };
    apply(store, change).map(|number| u32::try_from(number).unwrap_or_default())
}

/// Moves a label, or removes it.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is no such version.
/// [`PreconditionFailed`](ErrorKind::PreconditionFailed): the label is protected.
pub(crate) fn move_label(
    store: &dyn Store,
    name: &str,
    label: &str,
    version: Option<u32>,
    protected: Option<bool>,
    force: bool,
    author: &Author,
) -> Result<()> {
    check_label(label)?;
    let change = PromptChange::Label {
        name: name.to_owned(),
        label: label.to_owned(),
        version,
        protected,
        force,
        author: author.clone(),
    };
    apply(store, change).map(drop)
}

/// Starts an experiment.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter): it makes no sense. [`NotFound`](ErrorKind::NotFound): there
/// is no such version. [`PreconditionFailed`](ErrorKind::PreconditionFailed): another one runs.
pub(crate) fn start(store: &dyn Store, experiment: Experiment) -> Result<()> {
    check_name(&experiment.name)?;
    let wrong = |field: &'static str, detail: String| Err(Error::parameter(field, detail));
    let versions = versions(&experiment);
    let mut different = versions.clone();
    different.sort_unstable();
    different.dedup();
    if !(2..=MAX_VARIANTS).contains(&versions.len()) || different.len() < versions.len() {
        return wrong(
            "variants",
            format!(
                "an experiment has 2 to {MAX_VARIANTS} different versions; correct the variants"
            ),
        );
    }
    let weighs = |variant: &Variant| (1..=10_000).contains(&variant.weight);
    if !experiment.variants.iter().all(weighs) {
        return wrong("variants", "weights are numbers from 1 to 10000; correct them".to_owned());
    }
    if !UNITS.contains(&experiment.unit.as_str()) {
        return wrong("unit", "the unit is key, user or photo; correct it".to_owned());
    }
    if !(2..=200_000).contains(&experiment.planned.saturating_mul(versions.len() as u64)) {
        let detail = "the planned number is at least 1, and at most 200000 for all variants together; \
                      correct it";
        return wrong("planned", detail.to_owned());
    }
    experiment.metric.parse::<Metric>()?;
    apply(store, PromptChange::Start(Box::new(experiment))).map(drop)
}

fn versions(experiment: &Experiment) -> Vec<u32> {
    experiment.variants.iter().map(|variant| variant.version).collect()
}

/// An experiment by its name.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is none.
pub(crate) fn experiment(store: &dyn Store, name: &str) -> Result<Experiment> {
    let all = store.experiments(false)?;
    all.into_iter().find(|one| one.name == name).ok_or_else(|| no_experiment(name))
}

/// What an experiment shows.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is none.
pub(crate) fn results(store: &dyn Store, experiment: &Experiment) -> Result<Report> {
    let outcomes: Vec<Outcome> = store.exposures(experiment.id)?.into_iter().map(outcome).collect();
    let metric = experiment.metric.parse()?;
    Ok(report(metric, experiment.planned, &versions(experiment), &outcomes))
}

fn outcome(row: ExposureRow) -> Outcome {
    let decision = row.feedback.map(|feedback| match feedback {
        FeedbackKind::Up | FeedbackKind::Accept => Decision::Accepted,
        FeedbackKind::Down | FeedbackKind::Reject => Decision::Rejected,
        FeedbackKind::Edit => Decision::Edited,
    });
    Outcome {
        version: row.version,
        decision,
        edit: row.edit,
        confidence: row.confidence,
        latency: row.latency,
        cost: row.cost,
    }
}

/// Ends an experiment; a promoted version gets the label `production`.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is none. [`PreconditionFailed`](ErrorKind::PreconditionFailed): the
/// label is protected.
pub(crate) fn stop(
    store: &dyn Store,
    name: &str,
    promote: Option<u32>,
    force: bool,
    author: &Author,
) -> Result<()> {
    let (name, author) = (name.to_owned(), author.clone());
    apply(store, PromptChange::Stop { name, promote, force, author }).map(drop)
}

fn apply(store: &dyn Store, change: PromptChange) -> Result<i64> {
    match store.apply(vec![Change::Prompt(change)])?.pop() {
        Some(Applied::Prompt(number)) => Ok(number),
        _ => Err(Error::internal("a change of prompts was lost")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use cutline_library::NewAsset;
    use cutline_prompts::Kind;

    use super::*;

    struct Fixture {
        _folder: tempfile::TempDir,
        store: Arc<dyn Store>,
    }

    /// A library with two versions of the prompt `alt`.
    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let store = cutline_library::open(&folder.path().join("a.db").to_string_lossy()).unwrap();
        let author = Author::person("kim");
        for template in ["a photo of", "{{ photo.caption | default('a', true) }} with"] {
            let content = Content::new(Kind::Prefix, template);
            save(&*store, "alt", None, content, String::new(), &author).unwrap();
        }
        Fixture { _folder: folder, store }
    }

    fn asked(template: &str) -> CaptionParams {
        CaptionParams { template: Some(template.into()), ..CaptionParams::default() }
    }

    #[test]
    fn a_reference_without_a_label_is_production() {
        let Fixture { store, _folder } = fixture();
        let prompt =
            |template: &str| resolve(&*store, &asked(template), "key", None).map(|p| p.prompt);
        let error = prompt("alt").unwrap_err();
        assert!(
            error.kind() == ErrorKind::NotFound && error.detail().contains("production"),
            "{error}"
        );
        assert!(prompt("none").unwrap_err().detail().contains("no prompt none"));
        let author = Author::person("kim");
        move_label(&*store, "alt", "production", Some(1), None, false, &author).unwrap();
        assert_eq!(prompt("alt").unwrap().as_deref(), Some("a photo of"));
        assert_eq!(prompt("alt:2").unwrap().as_deref(), Some("a with"));
        assert_eq!(prompt("alt@latest").unwrap().as_deref(), Some("a with"));
        let mut asset = NewAsset::new(ContentHash::of(b"x"), author);
        asset.text(Field::Caption, "Rex\non the beach", None);
        store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
        let known = resolve(&*store, &asked("alt:2"), "", Some(&ContentHash::of(b"x"))).unwrap();
        assert_eq!(known.prompt.as_deref(), Some("Rex on the beach with"));
    }

    #[test]
    fn an_experiment_is_sticky_and_only_for_what_is_served() {
        let Fixture { store, _folder } = fixture();
        let variants = [(1, 1), (2, 1)];
        let experiment = |unit: &str, planned| Experiment {
            id: 0,
            name: "first".into(),
            prompt: "alt".into(),
            variants: variants.map(|(version, weight)| Variant { version, weight }).into(),
            unit: unit.into(),
            salt: "s".into(),
            metric: "accepted".into(),
            planned,
            author: Author::person("kim"),
            started_at: 0,
            stopped_at: None,
            promoted: None,
        };
        assert_eq!(start(&*store, experiment("dog", 5)).unwrap_err().field(), Some("unit"));
        assert_eq!(start(&*store, experiment("user", 0)).unwrap_err().field(), Some("planned"));
        start(&*store, experiment("user", 5)).unwrap();
        let version = |user: &str, template: &str| {
            let params = CaptionParams { user: Some(user.into()), ..asked(template) };
            let recipe = resolve(&*store, &params, "key", None).unwrap().recipe.unwrap();
            (recipe.name.clone(), recipe.experiment.clone().map(|(_, name)| name))
        };
        let seen: HashSet<String> = (0..40).map(|n| version(&n.to_string(), "alt").0).collect();
        assert_eq!(seen.len(), 2);
        for n in 0..5 {
            let one = version(&n.to_string(), "alt");
            assert_eq!(one, version(&n.to_string(), "alt"));
            assert_eq!(one.1.as_deref(), Some("first"));
        }
        assert_eq!(version("0", "alt:2"), ("alt:2".to_owned(), None));
        let found = super::experiment(&*store, "first").unwrap();
        let shown = results(&*store, &found).unwrap();
        assert_eq!(shown.verdict, cutline_prompts::Verdict::TooEarly { n: 0 });
        stop(&*store, "first", Some(2), false, &Author::person("kim")).unwrap();
        assert_eq!(version("0", "alt"), ("alt:2".to_owned(), None));
    }

    #[test]
    fn styles_are_checked_when_saved() {
        let style = |name: &str, emoji| Content {
            style: Some(name.into()),
            emoji,
            ..Content::new(Kind::Style, "")
        };
        assert_eq!(checked(style("poem", false)).unwrap_err().field(), Some("style"));
        assert_eq!(checked(style("title", true)).unwrap_err().field(), Some("emoji"));
        checked(style("engaging", true)).unwrap();
    }
}

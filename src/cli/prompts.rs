//! `cutline prompts`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand, ValueEnum};
use cutline_library::prompts::{Experiment, PromptVersion, Variant, no_prompt};
use cutline_library::{Author, ContentHash, Store};
use cutline_prompts::{
    Arm, Content, Estimate, Kind, MAX_TEMPLATE, Metric, PartKind, Reference, Verdict, difference,
};

use super::library::{PERSON, address, cell, open, print_json};
use super::{complain, print, unparsed};
use crate::captioner::facts;
use crate::config::{self, Group};
use crate::prompts;
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::{Colors, Mood};

pub(super) const NAME: &str = "prompts";

#[derive(Subcommand)]
enum Prompts {
    /// Lists the prompts with their labels
    List(ListArgs),
    /// Shows a prompt with its versions and the moves of its labels
    Show(ShowArgs),
    /// Saves a version of a prompt, and the prompt if there is none of this name
    Save(SaveArgs),
    /// Gives a label to a version; to roll back, to the one that had it before
    Label(LabelArgs),
    /// Compares two versions
    Diff(DiffArgs),
    /// Shows what a version says, without captioning anything
    Render(RenderArgs),
    /// Starts, reports and ends experiments
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Experiment(ExperimentArgs),
}

#[derive(Args)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ShowArgs {
    /// The prompt
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindName {
    Prefix,
    Style,
    Chain,
    Instruction,
}

#[derive(Args)]
struct SaveArgs {
    /// The prompt
    name: String,
    /// What it is for: words that the caption continues, a style, what becomes of the caption, or an
    /// instruction for another model
    #[arg(long, value_enum)]
    kind: KindName,
    /// The template
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    template: Option<String>,
    /// The template, from a file
    #[arg(long, value_name = "PATH", conflicts_with = "template")]
    file: Option<PathBuf>,
    /// The style of the text
    #[arg(long, value_name = "STYLE")]
    style: Option<String>,
    /// The most characters of the text
    #[arg(long, value_name = "N")]
    max_chars: Option<u32>,
    /// End an engaging text with emoji
    #[arg(long)]
    emoji: bool,
    /// The variables with their types, descriptions and defaults, as JSON
    #[arg(long, value_name = "JSON")]
    variables: Option<String>,
    /// Why this version is made
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
    /// What the prompt is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Give this label to the version
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// Who saves it
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

#[derive(Args)]
struct LabelArgs {
    /// The prompt
    name: String,
    /// production, staging, or another one
    label: String,
    /// The number of the version
    #[arg(required_unless_present = "remove")]
    version: Option<u32>,
    /// Remove the label
    #[arg(long, conflicts_with = "version")]
    remove: bool,
    /// From now on, move it only with --force
    #[arg(long)]
    protect: bool,
    /// From now on, move it without --force
    #[arg(long, conflicts_with = "protect")]
    unprotect: bool,
    /// Move it even if it is protected
    #[arg(long)]
    force: bool,
    /// Who moves it
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

#[derive(Args)]
struct DiffArgs {
    /// The first version: name, name@label or name:3
    from: String,
    /// The second version
    to: String,
}

#[derive(Args)]
struct RenderArgs {
    /// The version: name, name@label or name:3
    template: String,
    /// The variables, as a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    variables: String,
    /// A photo of the library, by its hash, for what it knows about it
    #[arg(long, value_name = "HASH")]
    photo: Option<String>,
    /// A caption, for a chain
    #[arg(long, value_name = "TEXT", default_value = "")]
    caption: String,
}

#[derive(Args)]
struct ExperimentArgs {
    #[command(subcommand)]
    command: Experiments,
}

#[derive(Subcommand)]
enum Experiments {
    /// Starts an experiment: those who ask for the prompt without a label get one of the versions
    Start(StartArgs),
    /// Reports numbers, means and 95 % intervals; no verdict before the planned number
    Report(ReportArgs),
    /// Ends an experiment, and gives a version of it the label production
    Promote(PromoteArgs),
    /// Ends an experiment
    Stop(StopArgs),
}

#[derive(Args)]
struct StartArgs {
    /// The experiment
    name: String,
    /// The prompt
    prompt: String,
    /// Versions with weights: 1=1 2=1
    #[arg(required = true, value_name = "VERSION=WEIGHT", value_parser = variant)]
    variants: Vec<Variant>,
    /// What always gets the same version: key, user or photo
    #[arg(long, default_value = "key")]
    unit: String,
    /// What it is decided by: accepted, edited, confidence, latency or cost
    #[arg(long, default_value = "accepted")]
    metric: String,
    /// Captions of each version before which there is no verdict
    #[arg(long, value_name = "N")]
    planned: u64,
    /// What mixes units differently than other experiments; the name if not given
    #[arg(long)]
    salt: Option<String>,
    /// Who starts it
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

#[derive(Args)]
struct ReportArgs {
    /// The experiment; all are listed if none is given
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct PromoteArgs {
    /// The experiment
    name: String,
    /// The number of the version
    version: u32,
    /// Move the label even if it is protected
    #[arg(long)]
    force: bool,
    /// Who promotes it
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

#[derive(Args)]
struct StopArgs {
    /// The experiment
    name: String,
    /// Who ends it
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

fn variant(text: &str) -> Result<Variant, String> {
    let numbers = text.split_once('=').and_then(|(version, weight)| {
        Some(Variant { version: version.parse().ok()?, weight: weight.parse().ok()? })
    });
    numbers.ok_or_else(|| "write the number of a version and its weight, like 2=1".to_owned())
}

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about(
            "Keeps prompts with versions and labels in a library, and compares them in experiments",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "Examples:\n  \
             export LIBRARY=sqlite:photos.db\n  \
             cutline prompts save dogs --kind prefix --template 'a photo of a {{ breed }}'\n  \
             cutline prompts label dogs production 1\n  \
             cutline caption --template dogs --variables '{\"breed\": \"pug\"}' rex.jpg\n  \
             cutline prompts experiment start shorter dogs 1=1 2=1 --planned 200\n  \
             cutline prompts experiment report shorter",
        );
    let with = |command: Command| config::with_settings(command, &[Group::Library]);
    Prompts::augment_subcommands(command).mut_subcommands(|command| match command.get_name() {
        "experiment" => command.mut_subcommands(with),
        _ => with(command),
    })
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let command = Prompts::from_arg_matches(matches).map_err(unparsed)?;
    // The settings are those of the innermost command.
    let mut innermost = matches;
    while let Some((_, inner)) = innermost.subcommand() {
        innermost = inner;
    }
    match command {
        Prompts::List(args) => list(&*open(innermost)?, args.json)?,
        Prompts::Show(args) => show(&*open(innermost)?, &args)?,
        // The library may be new.
        Prompts::Save(args) => save(&*cutline_library::open(&address(innermost)?)?, args)?,
        Prompts::Label(args) => label(&*open(innermost)?, &args)?,
        Prompts::Diff(args) => diff(&*open(innermost)?, &args)?,
        Prompts::Render(args) => render(&*open(innermost)?, &args)?,
        Prompts::Experiment(args) => experiment(&open(innermost)?, args.command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &dyn Store, json: bool) -> Result<()> {
    let all = store.prompts()?;
    if json {
        return print_json(&all);
    }
    for prompt in all {
        let labels: Vec<String> = prompt
            .labels
            .iter()
            .map(|label| format!("{}={}", label.label, label.version))
            .collect();
        let parts = [prompt.name, prompt.latest.to_string(), labels.join(" "), prompt.description];
        print(&(parts.map(|part| cell(&part)).join("\t") + "\n"))?;
    }
    Ok(())
}

fn show(store: &dyn Store, args: &ShowArgs) -> Result<()> {
    let found = store.prompt(&args.name)?.ok_or_else(|| no_prompt(&args.name))?;
    for version in &found.versions {
        let content = prompts::content(version)?;
        if args.json {
            print_json(&serde_json::json!({
                "version": version.version, "content": content, "digest": version.digest,
                "message": version.message, "author": version.author,
                "created_at": version.created_at,
            }))?;
            continue;
        }
        let labels = found.prompt.labels.iter().filter(|label| label.version == version.version);
        let labels: Vec<&str> = labels.map(|label| label.label.as_str()).collect();
        let said = content.style.clone().unwrap_or_default();
        let said = if content.template.is_empty() { said } else { content.template };
        let kind = content.kind.as_str().to_owned();
        let parts =
            [version.version.to_string(), labels.join(" "), kind, said, version.message.clone()];
        print(&(parts.map(|part| cell(&part)).join("\t") + "\n"))?;
    }
    Ok(())
}

fn save(store: &dyn Store, args: SaveArgs) -> Result<()> {
    let template = match (&args.template, &args.file) {
        (Some(template), _) => template.clone(),
        (None, Some(path)) => read(path)?,
        (None, None) => String::new(),
    };
    let variables = match &args.variables {
        None => BTreeMap::new(),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Error::parameter("variables", format!("--variables: {error}; correct the JSON"))
        })?,
    };
    let kind = match args.kind {
        KindName::Prefix => Kind::Prefix,
        KindName::Style => Kind::Style,
        KindName::Chain => Kind::Chain,
        KindName::Instruction => Kind::Instruction,
    };
    let content = Content {
        style: args.style,
        max_chars: args.max_chars,
        emoji: args.emoji,
        variables,
        ..Content::new(kind, template)
    };
    let author = Author::person(args.author);
    let version =
        prompts::save(store, &args.name, args.description, content, args.message, &author)?;
    if let Some(label) = &args.label {
        prompts::move_label(store, &args.name, label, Some(version), None, false, &author)?;
    }
    print(&format!("{}:{version}\n", args.name))
}

fn read(path: &std::path::Path) -> Result<String> {
    use std::io::Read;
    let mut text = String::new();
    // One byte more, so that a longer file is refused and not cut.
    let limit = MAX_TEMPLATE as u64 + 1;
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(limit).read_to_string(&mut text));
    read.map_err(|error| {
        let detail = format!("{} cannot be read ({error}); correct the path", path.display());
        Error::new(ErrorKind::Io, detail)
    })?;
    Ok(text)
}

fn label(store: &dyn Store, args: &LabelArgs) -> Result<()> {
    let protected = match (args.protect, args.unprotect) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let author = Author::person(args.author.clone());
    let LabelArgs { name, label, version, force, .. } = args;
    prompts::move_label(store, name, label, *version, protected, *force, &author)
}

fn diff(store: &dyn Store, args: &DiffArgs) -> Result<()> {
    let version = |text: &str| prompts::version(store, &text.parse::<Reference>()?);
    let text = |version: &PromptVersion| -> Result<String> {
        let content = prompts::content(version)?;
        let is_style = content.kind == Kind::Style;
        Ok(if is_style { version.content.clone() } else { content.template })
    };
    let (from, to) = (version(&args.from)?, version(&args.to)?);
    let mut shown = String::new();
    for part in difference(&text(&from)?, &text(&to)?) {
        match part.kind {
            PartKind::Same => shown.push_str(&part.text),
            PartKind::Removed => shown += &format!("[-{}-]", part.text),
            PartKind::Added => shown += &format!("{{+{}+}}", part.text),
        }
    }
    print(&(shown + "\n"))
}

fn render(store: &dyn Store, args: &RenderArgs) -> Result<()> {
    let version = prompts::version(store, &args.template.parse()?)?;
    let content = prompts::content(&version)?;
    let variables = serde_json::from_str(&args.variables).map_err(|error| {
        Error::parameter("variables", format!("--variables: {error}; correct the JSON"))
    })?;
    let photo = args.photo.as_deref().map(str::parse::<ContentHash>).transpose()?;
    let mut context = prompts::about(store, photo.as_ref())?;
    if content.kind == Kind::Chain {
        let colors = Colors { colors: Vec::new(), mood: Mood::of(&[]) };
        context.extend(facts(&args.caption, &colors));
    }
    print(&(content.render(&variables, &context)? + "\n"))
}

fn experiment(store: &Arc<dyn Store>, command: Experiments) -> Result<()> {
    let store = &**store;
    match command {
        Experiments::Start(args) => {
            let experiment = Experiment {
                id: 0,
                salt: args.salt.unwrap_or_else(|| args.name.clone()),
                name: args.name,
                prompt: args.prompt,
                variants: args.variants,
                unit: args.unit,
                metric: args.metric,
                planned: args.planned,
                author: Author::person(args.author),
                started_at: 0,
                stopped_at: None,
                promoted: None,
            };
            prompts::start(store, experiment)
        }
        Experiments::Report(args) => report(store, &args),
        Experiments::Promote(args) => {
            let author = Author::person(args.author);
            prompts::stop(store, &args.name, Some(args.version), args.force, &author)
        }
        Experiments::Stop(args) => {
            prompts::stop(store, &args.name, None, false, &Author::person(args.author))
        }
    }
}

fn report(store: &dyn Store, args: &ReportArgs) -> Result<()> {
    let Some(name) = &args.name else {
        let all = store.experiments(false)?;
        if args.json {
            return print_json(&all);
        }
        for one in all {
            let state = if one.stopped_at.is_some() { "ended" } else { "running" };
            print(&format!("{}\t{}\t{state}\n", one.name, one.prompt))?;
        }
        return Ok(());
    };
    let experiment = prompts::experiment(store, name)?;
    let report = prompts::results(store, &experiment)?;
    if args.json {
        return print_json(&report);
    }
    print("version\tcaptions\taccepted\tedited\tconfidence\tlatency\tcost\n")?;
    for arm in &report.arms {
        let Arm { version, exposures, accepted, edited, confidence, latency, cost } = arm;
        let figures = [accepted, edited, confidence, latency, cost].map(figure).join("\t");
        print(&format!("{version}\t{exposures}\t{figures}\n"))?;
    }
    let metric: Metric = report.metric;
    complain(&match report.verdict {
        Verdict::TooEarly { n } => {
            format!("no verdict yet: {n} of {} planned for {}", report.planned, metric.as_str())
        }
        Verdict::Better { version } => {
            format!("version {version} is better than the others in {}", metric.as_str())
        }
        Verdict::NoDifference => {
            format!("no version is better than the others in {}", metric.as_str())
        }
    });
    Ok(())
}

/// A mean with its number and interval.
fn figure(estimate: &Estimate) -> String {
    let mean = estimate.mean.map_or_else(|| "-".to_owned(), |mean| format!("{mean:.3}"));
    let interval = estimate.interval.map(|it| format!(" [{:.3}, {:.3}]", it.low, it.high));
    format!("{mean}{} n={}", interval.unwrap_or_default(), estimate.n)
}

//! `cutline library show`, `edit` and `rate`: one photo.

use std::process::ExitCode;

use clap::{ArgGroup, ArgMatches, Args, Command, FromArgMatches};
use cutline_library::{
    Applied, Asset, Author, Change, Feedback, FeedbackKind, Field, Store, TextAction, TextChange,
    Written,
};

use super::{PERSON, cell, field, open, photo, print_json};
use crate::cli::{complain, print, unparsed};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const SHOW: &str = "show";
pub(super) const EDIT: &str = "edit";
pub(super) const RATE: &str = "rate";

#[derive(Args)]
struct ShowArgs {
    /// The photo, by path or hash
    #[arg(value_name = "PHOTO")]
    photo: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn show_command() -> Command {
    ShowArgs::augment_args(Command::new(SHOW))
        .about("Shows the texts of a photo")
        .after_help(
            "The first line has the name of the photo and its version, for cutline library edit \
             --if-version. Each further line has a text's field and language, its revision, who wrote it, \
             and the text, with tabs between them; suggestions are marked.",
        )
}

pub(super) fn show(matches: &ArgMatches) -> Result<ExitCode> {
    let args = ShowArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let asset = asset(&*store, &args.photo)?;
    if args.json {
        print_json(&asset)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!("{}\tversion {}\n", cell(&asset.display_name()), asset.version))?;
    for text in &asset.texts {
        let slot = format!("{} {}", text.field.as_str(), text.lang);
        line(&slot, text.revision, text.author.name(), &text.text)?;
        if let Some(waiting) = &text.suggestion {
            let slot = format!("{slot}, suggested");
            line(&slot, waiting.revision, waiting.author.name(), &waiting.text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(slot: &str, revision: i64, author: &str, text: &str) -> Result<()> {
    print(&format!("{slot}\t{revision}\t{}\t{}\n", cell(author), cell(text)))
}

/// The photo that a hash or a path stands for, as the library has it.
fn asset(store: &dyn Store, name: &str) -> Result<Asset> {
    store.asset(&photo(store, name)?)?.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("the library has no photo {name}; check the hash, or search for its name"),
        )
    })
}

#[derive(Args)]
struct EditArgs {
    /// The photo, by path or hash
    #[arg(value_name = "PHOTO")]
    photo: String,
    /// The new text; tags one a line
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// Delete the text; no model writes it again
    #[arg(long)]
    clear: bool,
    /// Accept the suggestion, or confirm the text of a model
    #[arg(long)]
    accept: bool,
    /// Reject the suggestion
    #[arg(long)]
    reject: bool,
    /// Go back to this revision; see cutline library history --json
    #[arg(long, value_name = "REVISION")]
    revert: Option<i64>,
    /// caption, alt_text, tags, title or engaging
    #[arg(long, default_value = "caption", value_parser = field)]
    field: Field,
    /// Language of the text
    #[arg(long, default_value = "en")]
    lang: String,
    /// Only if the photo still has this version; see cutline library show
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Who does it
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

pub(super) fn edit_command() -> Command {
    EditArgs::augment_args(Command::new(EDIT))
        .group(
            ArgGroup::new("what")
                .args(["text", "clear", "accept", "reject", "revert"])
                .required(true),
        )
        .about("Writes, deletes, accepts, rejects or reverts a text of a photo")
        .after_help(
            "Scripts that show a text, and write what somebody made of it, \
             should give the version that they have shown.\n\n\
             Examples:\n  \
             cutline library edit Photos/dog.jpg \"Rex on the beach\"\n  \
             cutline library edit Photos/dog.jpg --field alt_text --accept\n  \
             cutline library edit Photos/dog.jpg --if-version 3 --revert 12",
        )
}

pub(super) fn edit(matches: &ArgMatches) -> Result<ExitCode> {
    let args = EditArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let action = match (args.text, args.revert) {
        (Some(text), _) => TextAction::Write { text },
        (_, Some(revision)) => TextAction::Revert { revision },
        _ if args.clear => TextAction::Clear,
        _ if args.accept => TextAction::Accept,
        _ => TextAction::Reject,
    };
    let change = TextChange {
        hash: photo(&*store, &args.photo)?,
        field: args.field,
        lang: args.lang,
        action,
        author: Author::person(args.author),
        if_version: args.if_version,
        run: None,
    };
    let applied = store.apply(vec![Change::Text(change)])?;
    let Some(Applied::Text { version, written }) = applied.into_iter().next() else {
        return Err(Error::internal("an edit was lost"));
    };
    complain(&match written {
        Written::Unchanged => format!("nothing changed; the photo has version {version}"),
        Written::Current(_) | Written::Suggested(_) | Written::Rejected(_) => {
            format!("changed; the photo has version {version} now")
        }
    });
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
struct RateArgs {
    /// The photo, by path or hash
    #[arg(value_name = "PHOTO")]
    photo: String,
    /// The text is good
    #[arg(long)]
    good: bool,
    /// The text is not good
    #[arg(long)]
    bad: bool,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// caption, alt_text, tags, title or engaging
    #[arg(long, default_value = "caption", value_parser = field)]
    field: Field,
    /// Language of the text
    #[arg(long, default_value = "en")]
    lang: String,
    /// This revision instead of the text that is shown
    #[arg(long, value_name = "REVISION")]
    revision: Option<i64>,
    /// Who says so
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

pub(super) fn rate_command() -> Command {
    RateArgs::augment_args(Command::new(RATE))
        .group(ArgGroup::new("verdict").args(["good", "bad"]).required(true))
        .about("Says that a text of a photo is good or bad, and why")
        .after_help(
            "cutline library stats --feedback counts this by model, prompt and day; cutline library export \
             --format pairs writes it for training.",
        )
}

pub(super) fn rate(matches: &ArgMatches) -> Result<ExitCode> {
    let args = RateArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let feedback = Feedback {
        hash: photo(&*store, &args.photo)?,
        revision: args.revision,
        field: args.field,
        lang: args.lang,
        kind: if args.good { FeedbackKind::Up } else { FeedbackKind::Down },
        reason: args.reason,
        author: Author::person(args.author),
    };
    store.apply(vec![Change::Feedback(feedback)])?;
    Ok(ExitCode::SUCCESS)
}

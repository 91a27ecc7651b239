//! `cutline keys` and `cutline usage`

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use cutline_library::{
    ApiKey, Applied, Budget, BudgetPeriod, BudgetUnit, Change, KeyChange, KeyRules, PriorityClass,
    Scope, Secret, Store, UsageGroup, UsageQuery, Used, format_time, now, parse_time, period,
};

use super::library::{address, cell, open, print_json};
use super::{complain, print, unparsed};
use crate::config::{self, Group};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "keys";
pub(super) const USAGE: &str = "usage";

const CREATE: &str = "create";
const LIST: &str = "list";
const ROTATE: &str = "rotate";

#[derive(Args)]
struct CreateArgs {
    /// A name for people; no two keys have the same
    #[arg(value_name = "NAME")]
    name: String,
    /// What it is for: caption, tags, library:read, library:write, prompts, admin; separated by commas
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', default_value = "caption",
          value_parser = scope)]
    scopes: Vec<Scope>,
    /// Models that it may use; all if none is named
    #[arg(long = "key-model", value_name = "MODEL")]
    models: Vec<String>,
    /// Requests per minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Images per minute
    #[arg(long, value_name = "N")]
    images_per_minute: Option<u32>,
    /// Requests at a time
    #[arg(long, value_name = "N")]
    parallel: Option<u32>,
    /// What it may use in a month, or in a day
    #[arg(long, value_name = "N")]
    budget: Option<u64>,
    /// The budget counts tokens instead of images
    #[arg(long, requires = "budget")]
    tokens: bool,
    /// The budget is that of a day
    #[arg(long, requires = "budget")]
    daily: bool,
    /// The share of the budget from which on answers carry a warning
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    soft_limit: f64,
    /// Its images wait with those of batches
    #[arg(long)]
    low_priority: bool,
    /// When it ends: 2027-01-01, or a time of that day
    #[arg(long, value_name = "DATE", value_parser = date)]
    expires: Option<i64>,
}

fn scope(text: &str) -> Result<Scope, String> {
    text.parse().map_err(|error: Error| error.detail().to_owned())
}

fn date(text: &str) -> Result<i64, String> {
    parse_time(text).map_err(|error| error.detail().to_owned())
}

fn group(text: &str) -> Result<UsageGroup, String> {
    text.parse().map_err(|error: Error| error.detail().to_owned())
}

#[derive(Args)]
struct ListArgs {
    /// Print JSON, one key a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct RotateArgs {
    /// The name or the number of the key
    #[arg(value_name = "KEY")]
    key: String,
    /// How long the key before is valid: 30m, 12h, 7d
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = grace)]
    grace: Duration,
}

fn grace(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "give a time such as 30m, 12h or 7d".to_owned())
}

#[derive(Args)]
struct RevokeArgs {
    /// The name or the number of the key
    #[arg(value_name = "KEY")]
    key: String,
}

#[derive(Args)]
struct UsageArgs {
    /// The first day: 2026-11-27, UTC; the first of this month if it is not given
    #[arg(long, value_name = "DATE", value_parser = date)]
    from: Option<i64>,
    /// The last day
    #[arg(long, value_name = "DATE", value_parser = date)]
    to: Option<i64>,
    /// key, model or day
    #[arg(long, value_name = "GROUP", default_value = "key", value_parser = group)]
    group_by: UsageGroup,
    /// Print JSON, one row a line
    #[arg(long)]
    json: bool,
}

pub(super) fn command() -> Command {
    let commands = [
        CreateArgs::augment_args(Command::new(CREATE)).about("Makes a key, and prints it once"),
        ListArgs::augment_args(Command::new(LIST)).about("Lists the keys").after_help(
            "Each line has the number of a key, its name, its beginning, its scopes, and whether it is \
             valid, with tabs between them.",
        ),
        RotateArgs::augment_args(Command::new(ROTATE))
            .about("Replaces a key by another one, and prints that once"),
        RevokeArgs::augment_args(Command::new("revoke")).about("Ends a key for good"),
    ];
    Command::new(NAME)
        .about("Makes and ends keys of clients of the server")
        .long_about(
            "Makes, lists, rotates and revokes the keys that clients of a server send, in its library. Only \
             their hashes are kept. A server that runs notices within two seconds. With the first key, it \
             answers no more requests without one.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(commands.map(|command| config::with_settings(command, &[Group::Library])))
        .after_help(
            "Examples:\n  \
             export LIBRARY=sqlite:photos.db\n  \
             cutline keys create operator --scope admin,caption\n  \
             cutline keys create 'web site' --requests-per-minute 60 --budget 10000\n  \
             cutline keys rotate 'web site' --grace 24h\n  \
             cutline keys revoke 'web site'",
        )
}

pub(super) fn usage_command() -> Command {
    let command = UsageArgs::augment_args(Command::new(USAGE))
        .about("Reports what the keys of a server have used")
        .after_help(
            "Each line has the key, model or day, the requests, the images, how many of these were cached or \
             failed, and the tokens that were read and written, with tabs between them.\n\n\
             Examples:\n  \
             cutline usage --library sqlite:photos.db\n  \
             cutline usage --library sqlite:photos.db --from 2026-11-01 --to 2026-11-30 --group-by day",
        );
    config::with_settings(command, &[Group::Library])
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let Some((name, matches)) = matches.subcommand() else {
        return Err(Error::internal("a command without a name was accepted"));
    };
    match name {
        CREATE => create(matches)?,
        LIST => list(matches)?,
        ROTATE => rotate(matches)?,
        _ => revoke(matches)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn change(store: &dyn Store, change: KeyChange) -> Result<ApiKey> {
    match store.apply(vec![Change::Key(change)])?.into_iter().next() {
        Some(Applied::Key(key)) => Ok(*key),
        _ => Err(Error::internal("a key was lost")),
    }
}

/// The key that a name or a number stands for.
fn find(store: &dyn Store, text: &str) -> Result<ApiKey> {
    let mut keys = store.keys()?;
    let named = keys.iter().position(|key| key.rules.name == text);
    let at = named.or_else(|| {
        let id = text.parse::<i64>().ok()?;
        keys.iter().position(|key| key.id == id)
    });
    at.map(|at| keys.swap_remove(at)).ok_or_else(|| {
        let detail =
            format!("there is no key {text}; cutline keys list shows those that there are");
        Error::new(ErrorKind::NotFound, detail)
    })
}

/// Only the key goes to standard output, so that it can be stored from there.
fn show(secret: &Secret, key: &ApiKey) -> Result<()> {
    print(&format!("{}\n", secret.reveal()))?;
    complain(&format!(
        "this is the key {} ({}); keep it now, because it is not shown again",
        key.id, key.rules.name
    ));
    Ok(())
}

fn create(matches: &ArgMatches) -> Result<()> {
    let args = CreateArgs::from_arg_matches(matches).map_err(unparsed)?;
    let budget = |amount| Budget {
        amount,
        unit: if args.tokens { BudgetUnit::Tokens } else { BudgetUnit::Images },
        period: if args.daily { BudgetPeriod::Day } else { BudgetPeriod::Month },
        soft_limit: args.soft_limit,
    };
    let rules = KeyRules {
        budget: args.budget.map(budget),
        scopes: args.scopes,
        models: args.models,
        requests_per_minute: args.requests_per_minute,
        images_per_minute: args.images_per_minute,
        parallel: args.parallel,
        priority: if args.low_priority { PriorityClass::Low } else { PriorityClass::Normal },
        expires_at: args.expires,
        ..KeyRules::new(args.name)
    };
    // A server may have nothing else in its library.
    let store = cutline_library::open(&address(matches)?)?;
    let secret = Secret::generate()?;
    let key = change(&*store, KeyChange::Create { rules, secret: secret.hash() })?;
    show(&secret, &key)
}

fn list(matches: &ArgMatches) -> Result<()> {
    let args = ListArgs::from_arg_matches(matches).map_err(unparsed)?;
    for key in open(matches)?.keys()? {
        if args.json {
            print_json(&key)?;
            continue;
        }
        let scopes: Vec<&str> = key.rules.scopes.iter().map(|scope| scope.as_str()).collect();
        let state = match (key.revoked_at, key.rules.expires_at) {
            (Some(time), _) => format!("revoked {}", format_time(time)),
            (None, Some(time)) if time <= now() => format!("expired {}", format_time(time)),
            (None, Some(time)) => format!("valid until {}", format_time(time)),
            (None, None) => "valid".to_owned(),
        };
        let (name, scopes) = (cell(&key.rules.name), scopes.join(","));
        print(&format!("{}\t{name}\t{}…\t{scopes}\t{state}\n", key.id, key.prefix))?;
    }
    Ok(())
}

fn rotate(matches: &ArgMatches) -> Result<()> {
    let args = RotateArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let key = find(&*store, &args.key)?;
    let secret = Secret::generate()?;
    let grace = i64::try_from(args.grace.as_millis()).unwrap_or(i64::MAX);
    let rotate = KeyChange::Rotate { id: key.id, secret: secret.hash(), grace };
    show(&secret, &change(&*store, rotate)?)
}

fn revoke(matches: &ArgMatches) -> Result<()> {
    let args = RevokeArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let key = find(&*store, &args.key)?;
    change(&*store, KeyChange::Revoke { id: key.id })?;
    complain(&format!("the key {} ({}) is revoked", key.id, key.rules.name));
    Ok(())
}

pub(super) fn usage(matches: &ArgMatches) -> Result<ExitCode> {
    let args = UsageArgs::from_arg_matches(matches).map_err(unparsed)?;
    let now = now();
    let query = UsageQuery {
        from: args.from.unwrap_or(period(now, BudgetPeriod::Month).0),
        to: args.to.unwrap_or(now),
        key: None,
        group: args.group_by,
    };
    for row in open(matches)?.usage(&query)? {
        if args.json {
            print_json(&row)?;
            continue;
        }
        let Used { requests, images, cached, errors, prompt_tokens, completion_tokens } = row.used;
        let numbers = [requests, images, cached, errors, prompt_tokens, completion_tokens];
        let numbers = numbers.map(|number| number.to_string()).join("\t");
        print(&format!("{}\t{numbers}\n", cell(&row.name)))?;
    }
    Ok(ExitCode::SUCCESS)
}

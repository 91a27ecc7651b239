//! Who may change which text. Every store asks this module.

use cutline_error::{Error, ErrorKind, Result};

use crate::types::{Author, AuthorKind, RevisionId};

/// The text that is shown, as far as the rules need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) revision: RevisionId,
    pub(crate) text: String,
    /// A person decided about it.
    pub(crate) reviewed: bool,
    /// The number of its author.
    pub(crate) author: i64,
}

/// A text that somebody wants to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proposal<'a> {
    pub(crate) text: &'a str,
    pub(crate) kind: AuthorKind,
    /// The number of its author.
    pub(crate) author: i64,
    /// Whether a person has rejected the same text before.
    pub(crate) rejected_before: bool,
    /// The suggestion that waits now.
    pub(crate) waiting: Option<&'a str>,
}

/// What happens to a proposed text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It becomes the current one.
    Write,
    /// It waits for a person.
    Suggest,
    /// Nothing happens.
    Ignore,
}

/// Decides about a text that somebody wants to write.
pub(crate) fn decide(shown: Option<&Shown>, proposal: Proposal<'_>) -> Decision {
    let by_machine = proposal.kind == AuthorKind::Model;
    // A machine that finds no words says nothing about those that are there.
    if proposal.text.is_empty() {
        return Decision::Ignore;
    }
    match shown {
        None if by_machine && proposal.rejected_before => Decision::Ignore,
        None => Decision::Write,
        Some(shown) if shown.text == proposal.text && shown.reviewed => Decision::Ignore,
        // An import repeats what was imported before; it is no decision of today.
        Some(shown) if shown.reviewed && proposal.kind == AuthorKind::Import => suggest(proposal),
        Some(shown) if by_machine && shown.reviewed => suggest(proposal),
        Some(shown)
            if by_machine && shown.text == proposal.text && shown.author == proposal.author =>
        {
            Decision::Ignore
        }
        Some(_) if by_machine && proposal.rejected_before => Decision::Ignore,
        Some(_) => Decision::Write,
    }
}

fn suggest(proposal: Proposal<'_>) -> Decision {
    if proposal.rejected_before || proposal.waiting == Some(proposal.text) {
        Decision::Ignore
    } else {
        Decision::Suggest
    }
}

/// Whether a text by this author counts as a decision of a person.
pub(crate) fn is_reviewed(author: &Author) -> bool {
    author.kind() != AuthorKind::Model
}

/// Checks the version that a caller expects.
///
/// # Errors
/// [`PreconditionFailed`](ErrorKind::PreconditionFailed): the photo has been changed since.
pub(crate) fn check_version(expected: Option<u64>, found: u64) -> Result<()> {
    match expected {
        Some(expected) if expected != found => Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!(
                "the photo has been changed since version {expected} and is at version {found}; read it \
                 again, then repeat the change"
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, reviewed: bool) -> Shown {
        Shown { revision: 1, text: text.into(), reviewed, author: 1 }
    }

    fn by(kind: AuthorKind, text: &str) -> Proposal<'_> {
        Proposal { text, kind, author: 1, rejected_before: false, waiting: None }
    }

    #[test]
    fn a_machine_never_replaces_what_a_person_decided() {
        use AuthorKind::Model;
        for text in ["a person's text", ""] {
            let human = shown(text, true);
            assert_eq!(decide(Some(&human), by(Model, "new")), Decision::Suggest);
            let again = Proposal { waiting: Some("new"), ..by(Model, "new") };
            assert_eq!(decide(Some(&human), again), Decision::Ignore);
            let rejected = Proposal { rejected_before: true, ..by(Model, "new") };
            assert_eq!(decide(Some(&human), rejected), Decision::Ignore);
        }
    }

    #[test]
    fn a_machine_replaces_a_machine_and_repeats_nothing() {
        use AuthorKind::Model;
        assert_eq!(decide(None, by(Model, "new")), Decision::Write);
        assert_eq!(decide(Some(&shown("old", false)), by(Model, "new")), Decision::Write);
        assert_eq!(decide(Some(&shown("old", false)), by(Model, "old")), Decision::Ignore);
        // Another model says the same.
        let other = Proposal { author: 2, ..by(Model, "old") };
        assert_eq!(decide(Some(&shown("old", false)), other), Decision::Write);
        assert_eq!(decide(Some(&shown("old", false)), by(Model, "")), Decision::Ignore);
    }

    #[test]
    fn a_person_replaces_everything_and_an_import_all_but_a_person() {
        use AuthorKind::{Import, Person};
        assert_eq!(decide(Some(&shown("old", true)), by(Person, "new")), Decision::Write);
        assert_eq!(decide(Some(&shown("old", true)), by(Person, "old")), Decision::Ignore);
        // A person who writes what a machine wrote has reviewed it.
        assert_eq!(decide(Some(&shown("old", false)), by(Person, "old")), Decision::Write);
        assert_eq!(decide(Some(&shown("old", true)), by(Import, "new")), Decision::Suggest);
        assert_eq!(decide(Some(&shown("old", false)), by(Import, "new")), Decision::Write);
    }

    #[test]
    fn versions_are_compared_if_given() {
        assert!(check_version(None, 3).is_ok());
        assert!(check_version(Some(3), 3).is_ok());
        let error = check_version(Some(2), 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    }
}

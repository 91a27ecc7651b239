//! Vocabularies of a library: which version is meant, and what is saved.

use cutline_library::vocabularies::{
    VocabularyChange, VocabularyContent, no_version, no_vocabulary,
};
use cutline_library::{Applied, Author, Change, Store};
use cutline_tags::{Reference, Source, Vocabulary, check_name};

use cutline_error::{Error, ErrorKind, Result};

/// A version of a vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kept {
    /// Its name and its number.
    pub(crate) reference: Reference,
    /// What the library has.
    pub(crate) stored: VocabularyContent,
}

impl Kept {
    /// The vocabulary, under the name that it has in the library.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io): a newer program wrote it.
    pub(crate) fn vocabulary(&self) -> Result<Vocabulary> {
        let read = Vocabulary::from_json(&self.stored.content).map_err(|error| {
            let detail =
                format!("{} was written by another program; update this one", self.reference);
            Error::new(ErrorKind::Io, detail).with_source(error)
        });
        Ok(read?.kept_as(&self.reference))
    }
}

/// The version that a reference means.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is none.
pub(crate) fn find(store: &dyn Store, reference: &Reference) -> Result<Kept> {
    let Reference { name, version } = reference;
    if let Some(stored) = store.vocabulary_content(name, *version)? {
        let version = Some(stored.version.version);
        return Ok(Kept { reference: Reference { name: name.clone(), version }, stored });
    }
    match version {
        Some(version) if store.vocabulary(name)?.is_some() => Err(no_version(name, *version)),
        _ => Err(no_vocabulary(name)),
    }
}

/// The vocabulary of a source.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is none. [`InvalidParameter`](ErrorKind::InvalidParameter): it is
/// one of a library, and there is no library.
pub(crate) fn of_source(source: Source, store: Option<&dyn Store>) -> Result<Vocabulary> {
    match source {
        Source::Own(vocabulary) => Ok(vocabulary),
        Source::Library(reference) => {
            find(store.ok_or_else(|| no_library(&reference))?, &reference)?.vocabulary()
        }
    }
}

/// The error for a vocabulary of a library where there is none.
pub(crate) fn no_library(reference: &Reference) -> Error {
    Error::parameter(
        cutline_tags::FIELD,
        format!(
            "{reference} is a vocabulary of a library; set LIBRARY, or give the tags themselves"
        ),
    )
}

/// Saves a version, which counts from now on. Returns its number.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter): the name cannot be used.
pub(crate) fn save(
    store: &dyn Store,
    name: &str,
    vocabulary: &Vocabulary,
    message: String,
    author: &Author,
) -> Result<u32> {
    check_name(name)?;
    let content = serde_json::to_string(vocabulary)
        .map_err(|error| Error::internal("a vocabulary cannot be written").with_source(error))?;
    let (name, author) = (name.to_owned(), author.clone());
    apply(store, VocabularyChange::Save { name, content, message, author })
}

/// Another version counts from now on.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is none.
pub(crate) fn choose(store: &dyn Store, name: &str, version: u32) -> Result<()> {
    apply(store, VocabularyChange::Use { name: name.to_owned(), version }).map(drop)
}

/// Removes a vocabulary with all versions.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is none.
pub(crate) fn delete(store: &dyn Store, name: &str) -> Result<()> {
    apply(store, VocabularyChange::Delete { name: name.to_owned() }).map(drop)
}

fn apply(store: &dyn Store, change: VocabularyChange) -> Result<u32> {
    match store.apply(vec![Change::Vocabulary(change)])?.pop() {
        Some(Applied::Vocabulary(version)) => Ok(version),
        _ => Err(Error::internal("a change of vocabularies was lost")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_means_the_version_that_counts_or_the_one_that_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let store = cutline_library::open(&folder.path().join("a.db").to_string_lossy()).unwrap();
        let kim = Author::person("kim");
        for tags in ["dog\ncat: kitten", "[animals]\nbird"] {
            let vocabulary = Vocabulary::parse(tags.as_bytes()).unwrap();
            save(&*store, "shop", &vocabulary, String::new(), &kim).unwrap();
        }
        let found = |reference: &str| {
            of_source(Source::parse(reference).unwrap(), Some(&*store))
                .map(|vocabulary| (vocabulary.name().to_owned(), vocabulary.len()))
        };
        assert_eq!(found("library:shop").unwrap(), ("library:shop:2".to_owned(), 1));
        assert_eq!(found("library:shop:1").unwrap(), ("library:shop:1".to_owned(), 2));
        choose(&*store, "shop", 1).unwrap();
        assert_eq!(found("library:shop").unwrap().0, "library:shop:1");
        assert_eq!(found("dog").unwrap(), (String::new(), 1));
        let error = |reference: &str| found(reference).unwrap_err();
        assert!(error("library:shop:3").detail().contains("no version 3"));
        assert!(error("library:none:3").detail().contains("no vocabulary none"));
        delete(&*store, "shop").unwrap();
        assert_eq!(error("library:shop").kind(), ErrorKind::NotFound);
        let alone = of_source(Source::parse("library:shop").unwrap(), None).unwrap_err();
        assert!(alone.detail().contains("LIBRARY"), "{alone}");
        let one = Vocabulary::parse(b"dog").unwrap();
        let wrong = save(&*store, "a b", &one, String::new(), &kim).unwrap_err();
        assert_eq!(wrong.field(), Some("name"));
    }

    #[test]
    fn what_another_program_wrote_is_told_from_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let store = cutline_library::open(&folder.path().join("a.db").to_string_lossy()).unwrap();
        let newer = VocabularyChange::Save {
            name: "shop".into(),
            content: r#"{"format": 2}"#.into(),
            message: String::new(),
            author: Author::person("kim"),
        };
        apply(&*store, newer).unwrap();
        let reference = Reference { name: "shop".into(), version: None };
        let error = find(&*store, &reference).unwrap().vocabulary().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.detail().contains("library:shop:1"), "{error}");
    }
}

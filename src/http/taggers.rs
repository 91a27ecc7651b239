//! Vocabularies that are ready for a model. To prepare one takes many milliseconds, so those that are used
//! again are kept.

use std::sync::{Arc, Mutex, PoisonError};

use cutline_library::Store;
use tokio::sync::OnceCell;

use super::library::with;
use super::state::AppState;
use crate::captioner::{Captioner, Tagger};
use crate::vocabularies::{self, Kept};
use cutline_error::Result;
use cutline_tags::{Reference, Source};

/// Vocabularies that are kept.
const KEPT: usize = 8;

/// What a vocabulary was prepared from.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    /// The model's hash.
    model: String,
    /// The version and its hash; `None` for the vocabulary of the settings.
    version: Option<(Reference, String)>,
}

/// The vocabularies, the one that was used last at the end.
#[derive(Debug, Default)]
pub(super) struct Taggers(Mutex<Vec<(Key, Arc<OnceCell<Tagger>>)>>);

impl Taggers {
    /// The place of a vocabulary, which may be empty.
    fn place(&self, key: Key) -> Arc<OnceCell<Tagger>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match kept.iter().position(|(other, _)| *other == key) {
            Some(at) => kept.remove(at).1,
            None => Arc::default(),
        };
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(&place)));
        place
    }
}

/// The vocabulary of a request, or else that of the settings, or else everyday tags, ready for the model.
///
/// # Errors
/// [`NotFound`](cutline_error::ErrorKind::NotFound): the library has none of this name.
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): there is no library; or a name is too long
/// for the model.
pub(super) async fn of(
    state: &AppState,
    captioner: &Captioner,
    asked: Option<Source>,
) -> Result<Tagger> {
    let reference = match asked {
        // Used once, as far as anyone knows.
        Some(Source::Own(vocabulary)) => return captioner.tagger(vocabulary).await,
        Some(Source::Library(reference)) => Some(reference),
        None => match &state.settings().tag_vocabulary {
            Some(Source::Library(reference)) => Some(reference.clone()),
            Some(Source::Own(_)) | None => None,
        },
    };
    let kept = match reference {
        Some(reference) if state.library().is_none() => {
            return Err(vocabularies::no_library(&reference));
        }
        Some(reference) => {
            let find = move |store: &dyn Store| vocabularies::find(store, &reference);
            Some(with(state, find).await?)
        }
        None => None,
    };
    let version =
        kept.as_ref().map(|kept| (kept.reference.clone(), kept.stored.version.digest.clone()));
    let place = state.taggers().place(Key { model: captioner.info().digest.clone(), version });
    let prepare = || async {
        let vocabulary = match (kept, &state.settings().tag_vocabulary) {
            (Some(kept), _) => read(kept).await?,
            (None, Some(Source::Own(vocabulary))) => vocabulary.clone(),
            (None, _) => Tagger::everyday()?,
        };
        captioner.tagger(vocabulary).await
    };
    place.get_or_try_init(prepare).await.cloned()
}

/// The vocabulary of the settings, if they have one, for answers that have tags without being asked for a
/// vocabulary.
///
/// # Errors
/// As [`of`].
pub(super) async fn of_settings(state: &AppState, captioner: &Captioner) -> Result<Option<Tagger>> {
    match state.settings().tag_vocabulary {
        Some(_) => of(state, captioner, None).await.map(Some),
        None => Ok(None),
    }
}

/// Reads thousands of names off the event loop.
async fn read(kept: Kept) -> Result<cutline_tags::Vocabulary> {
    let read = tokio::task::spawn_blocking(move || kept.vocabulary()).await;
    read.map_err(|join| cutline_error::Error::internal("a vocabulary was lost").with_source(join))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_used_last_are_kept() {
        let taggers = Taggers::default();
        let key = |n: usize| Key {
            model: "m".into(),
            version: Some((Reference { name: n.to_string(), version: Some(1) }, String::new())),
        };
        let first = taggers.place(key(0));
        for n in 1..KEPT {
            taggers.place(key(n));
        }
        assert!(Arc::ptr_eq(&first, &taggers.place(key(0))), "as many as there is room for");
        let second = taggers.place(key(1));
        taggers.place(key(KEPT));
        assert!(Arc::ptr_eq(&second, &taggers.place(key(1))));
        assert!(Arc::ptr_eq(&first, &taggers.place(key(0))));
        assert_eq!(taggers.0.lock().unwrap().len(), KEPT);
        let other = Key { model: "n".into(), ..key(0) };
        assert!(!Arc::ptr_eq(&first, &taggers.place(other)));
    }
}

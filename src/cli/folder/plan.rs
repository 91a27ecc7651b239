//! What is left to be done.

use std::collections::HashMap;

use super::inputs::Photo;
use super::record::Stamp;
use super::results::Entry;
use super::sidecar::Sidecars;

/// What counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Mode {
    /// What was made of the same file with the same parameters.
    Resume,
    /// Whatever has a text.
    OnlyMissing,
    /// Nothing.
    Overwrite,
}

/// What is there already.
#[derive(Debug, Default)]
pub(in crate::cli) struct Known {
    /// Of results: by path, the last row of each.
    rows: Option<HashMap<String, Entry>>,
}

impl Known {
    /// What a file of results holds; `None` where results are not kept.
    pub(in crate::cli) fn new(entries: Option<Vec<Entry>>) -> Self {
        let by_path = |entries: Vec<Entry>| {
            entries.into_iter().map(|entry| (entry.path.clone(), entry)).collect()
        };
        Self { rows: entries.map(by_path) }
    }

    /// Whether `photo` is done as far as `mode` asks, in results and in sidecars alike.
    pub(in crate::cli) fn has(
        &self,
        photo: &Photo,
        stamp: Option<&Stamp>,
        sidecars: Option<&Sidecars>,
        mode: Mode,
    ) -> bool {
        if mode == Mode::Overwrite || photo.content.is_some() {
            return false;
        }
        // A photo that is no more is told of.
        if (self.rows.is_none() && sidecars.is_none()) || stamp.is_none() {
            return false;
        }
        let row = self.rows.as_ref().map(|rows| rows.get(&photo.name()));
        let in_results = row.is_none_or(|row| match (row, mode) {
            (None, _) => false,
            (Some(entry), Mode::OnlyMissing) => !entry.fallback && !entry.caption.is_empty(),
            // Text has no room for more than the path.
            (Some(entry), _) => entry.stamp.is_none() || entry.stamp.as_ref() == stamp,
        });
        let in_sidecar = sidecars.is_none_or(|sidecars| match mode {
            Mode::OnlyMissing => sidecars
                .read(&photo.path)
                .is_some_and(|said| !said.fallback && !said.text.is_empty()),
            _ => sidecars.is_current(&photo.path, stamp),
        });
        in_results && in_sidecar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_photo_is_done_if_file_and_parameters_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        std::fs::write(&path, "12345").unwrap();
        let photo = Photo { path: path.clone(), content: None };
        let stamp = Stamp::of(&path, "p").unwrap();
        let entry = |stamp: Option<Stamp>, fallback| Entry {
            path: photo.name(),
            caption: "a cat".into(),
            confidence: None,
            fallback,
            stamp,
        };
        let has = |entry: Entry, mode| {
            Known::new(Some(vec![entry])).has(&photo, Some(&stamp), None, mode)
        };
        assert!(has(entry(Some(stamp.clone()), false), Mode::Resume));
        assert!(has(entry(None, false), Mode::Resume), "text has only the path");
        for other in [
            Stamp { size_bytes: 6, ..stamp.clone() },
            Stamp { modified_ms: 1, ..stamp.clone() },
            Stamp { parameters: "q".into(), ..stamp.clone() },
        ] {
            assert!(!has(entry(Some(other.clone()), false), Mode::Resume), "{other:?}");
            assert!(has(entry(Some(other), false), Mode::OnlyMissing));
        }
        // That it cannot be described is known, but is no description.
        assert!(has(entry(Some(stamp.clone()), true), Mode::Resume));
        assert!(!has(entry(Some(stamp.clone()), true), Mode::OnlyMissing));
        assert!(!has(entry(Some(stamp.clone()), false), Mode::Overwrite));
        let known = Known::new(Some(vec![entry(Some(stamp.clone()), false)]));
        assert!(!known.has(&photo, None, None, Mode::Resume), "it is gone");
        assert!(!Known::new(None).has(&photo, Some(&stamp), None, Mode::Resume));
    }
}

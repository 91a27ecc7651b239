//! Which photos are finished already.

use std::collections::HashMap;

use super::inputs::InputPhoto;
use super::record::FileStamp;
use super::results::ResultEntry;
use super::sidecar::Sidecars;

/// Which earlier results count as finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum ResumeMode {
    /// Those of the same version of the file with the same parameters.
    Resume,
    /// All that have a caption.
    OnlyMissing,
    /// None.
    Overwrite,
}

/// The results of earlier runs.
#[derive(Debug, Default)]
pub(in crate::cli) struct FinishedPhotos {
    /// The last row of each path; `None` if results are not written to a file.
    rows: Option<HashMap<String, ResultEntry>>,
}

impl FinishedPhotos {
    /// The entries of a file of results; `None` if results are not written to a file.
    pub(in crate::cli) fn new(entries: Option<Vec<ResultEntry>>) -> Self {
        let by_path = |entries: Vec<ResultEntry>| {
            entries.into_iter().map(|entry| (entry.path.clone(), entry)).collect()
        };
        Self { rows: entries.map(by_path) }
    }

    /// Whether `photo` is finished according to `mode`: in the results, if they are written to a file,
    /// and in its sidecar, if sidecars are written.
    pub(in crate::cli) fn contains(
        &self,
        photo: &InputPhoto,
        stamp: Option<&FileStamp>,
        sidecars: Option<&Sidecars>,
        mode: ResumeMode,
    ) -> bool {
        if mode == ResumeMode::Overwrite || photo.content.is_some() {
            return false;
        }
        // Without a stamp the file does not exist; captioning it reports that.
        if (self.rows.is_none() && sidecars.is_none()) || stamp.is_none() {
            return false;
        }
        let row = self.rows.as_ref().map(|rows| rows.get(&photo.name()));
        let in_results = row.is_none_or(|row| match (row, mode) {
            (None, _) => false,
            (Some(entry), ResumeMode::OnlyMissing) => !entry.fallback && !entry.caption.is_empty(),
            // The text format stores no stamp.
            (Some(entry), _) => entry.stamp.is_none() || entry.stamp.as_ref() == stamp,
        });
        let in_sidecar = sidecars.is_none_or(|sidecars| match mode {
            ResumeMode::OnlyMissing => sidecars
                .read(&photo.path)
                .is_some_and(|content| !content.fallback && !content.text.is_empty()),
            _ => sidecars.is_current(&photo.path, stamp),
        });
        in_results && in_sidecar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_photo_is_finished_if_file_and_parameters_are_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        std::fs::write(&path, "12345").unwrap();
        let photo = InputPhoto { path: path.clone(), content: None };
        let stamp = FileStamp::of(&path, "p").unwrap();
        let entry = |stamp: Option<FileStamp>, fallback| ResultEntry {
            path: photo.name(),
            caption: "a cat".into(),
            confidence: None,
            fallback,
            stamp,
        };
        let has = |entry: ResultEntry, mode| {
            FinishedPhotos::new(Some(vec![entry])).contains(&photo, Some(&stamp), None, mode)
        };
        assert!(has(entry(Some(stamp.clone()), false), ResumeMode::Resume));
        assert!(has(entry(None, false), ResumeMode::Resume), "text stores only the path");
        for other in [
            FileStamp { size_bytes: 6, ..stamp.clone() },
            FileStamp { modified_ms: 1, ..stamp.clone() },
            FileStamp { parameters: "q".into(), ..stamp.clone() },
        ] {
            assert!(!has(entry(Some(other.clone()), false), ResumeMode::Resume), "{other:?}");
            assert!(has(entry(Some(other), false), ResumeMode::OnlyMissing));
        }
        // A fallback is a result, but not a caption.
        assert!(has(entry(Some(stamp.clone()), true), ResumeMode::Resume));
        assert!(!has(entry(Some(stamp.clone()), true), ResumeMode::OnlyMissing));
        assert!(!has(entry(Some(stamp.clone()), false), ResumeMode::Overwrite));
        let known = FinishedPhotos::new(Some(vec![entry(Some(stamp.clone()), false)]));
        assert!(!known.contains(&photo, None, None, ResumeMode::Resume), "the file does not exist");
        assert!(!FinishedPhotos::new(None).contains(
            &photo,
            Some(&stamp),
            None,
            ResumeMode::Resume
        ));
    }
}

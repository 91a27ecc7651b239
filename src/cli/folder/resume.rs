//! Which photos are finished already.

use std::collections::HashMap;
use std::path::PathBuf;

use super::inputs::InputPhoto;
use super::name;
use super::record::FileStamp;
use super::results::ResultEntry;
use super::sidecar::Sidecars;
use cutline_error::Error;

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
    rows: Option<HashMap<PathBuf, ResultEntry>>,
    /// Whether rows are written, to a file or elsewhere.
    writes_rows: bool,
}

impl FinishedPhotos {
    /// The entries of a file of results; `None` if results are not written to a file.
    pub(in crate::cli) fn new(entries: Option<Vec<ResultEntry>>, writes_rows: bool) -> Self {
        let by_path = |entries: Vec<ResultEntry>| {
            entries.into_iter().map(|entry| (name::path(&entry.path), entry)).collect()
        };
        Self { rows: entries.map(by_path), writes_rows }
    }

    /// Whether `photo` is finished according to `mode`: in the results, if they are written to a file,
    /// and in its sidecar, if sidecars are written.
    pub(in crate::cli) fn state(
        &self,
        photo: &InputPhoto,
        stamp: Option<&FileStamp>,
        sidecars: Option<&Sidecars>,
        mode: ResumeMode,
    ) -> PhotoState {
        // Without a stamp the file does not exist; captioning it reports that.
        if photo.content.is_some() || stamp.is_none() {
            return PhotoState::Due;
        }
        let in_results = self
            .rows
            .as_ref()
            .map(|rows| rows.get(&photo.path).is_some_and(|entry| is_finished(entry, stamp, mode)));
        let in_sidecar = sidecars.map(|sidecars| sidecars.is_finished(&photo.path, stamp, mode));
        match (in_results, in_sidecar) {
            // A row can be written even if the sidecar cannot.
            (in_results, Some(Err(error))) if !self.writes_rows || in_results == Some(true) => {
                PhotoState::Refused(error)
            }
            (None, Some(Err(_))) => PhotoState::Due,
            (None, None) => PhotoState::Due,
            (in_results, in_sidecar) => {
                let finished = in_results.unwrap_or(true)
                    && in_sidecar.is_none_or(|finished| finished.is_ok_and(|finished| finished));
                if finished { PhotoState::Finished } else { PhotoState::Due }
            }
        }
    }
}

/// What is to be done with a photo.
#[derive(Debug)]
pub(in crate::cli) enum PhotoState {
    Due,
    Finished,
    /// Nothing, because its caption could not be written.
    Refused(Error),
}

fn is_finished(entry: &ResultEntry, stamp: Option<&FileStamp>, mode: ResumeMode) -> bool {
    match mode {
        ResumeMode::Overwrite => false,
        ResumeMode::OnlyMissing => !entry.fallback && !entry.caption.is_empty(),
        // The text format stores no stamp.
        ResumeMode::Resume => entry.stamp.is_none() || entry.stamp.as_ref() == stamp,
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
        let is_finished = |finished: &FinishedPhotos, stamp, mode| {
            matches!(finished.state(&photo, stamp, None, mode), PhotoState::Finished)
        };
        let has = |entry: ResultEntry, mode| {
            let finished = FinishedPhotos::new(Some(vec![entry]), true);
            is_finished(&finished, Some(&stamp), mode)
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
        let known = FinishedPhotos::new(Some(vec![entry(Some(stamp.clone()), false)]), true);
        assert!(!is_finished(&known, None, ResumeMode::Resume), "the file does not exist");
        assert!(!is_finished(&FinishedPhotos::new(None, true), Some(&stamp), ResumeMode::Resume));
    }
}

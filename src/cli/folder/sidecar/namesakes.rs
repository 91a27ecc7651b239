//! The files that a short name, such as `photo.xmp`, could belong to.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use super::is_sidecar;
use crate::cli::folder::inputs::{InputPhoto, is_photo};

/// The files of the folders of photos that have the name of a photo apart from the extension.
#[derive(Debug, Default)]
pub(super) struct Namesakes {
    /// By folder and lower-case stem; each name with whether it is a photo.
    names: HashMap<PathBuf, Vec<(OsString, bool)>>,
    /// The folders that could be listed.
    listed: HashSet<PathBuf>,
}

impl Namesakes {
    pub(super) fn of(photos: &[InputPhoto]) -> Self {
        let mut names: HashMap<PathBuf, Vec<(OsString, bool)>> = HashMap::new();
        for photo in photos {
            let name = photo.path.file_name().unwrap_or_default().to_owned();
            names.entry(stem_key(&photo.path)).or_default().push((name, true));
        }
        let mut listed = HashSet::new();
        for folder in folders(photos) {
            let shown = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let Ok(entries) = fs::read_dir(shown) else { continue };
            listed.insert(folder.to_owned());
            for entry in entries.flatten() {
                let path = folder.join(entry.file_name());
                if let Some(names) = names.get_mut(&stem_key(&path))
                    && !is_sidecar(&path)
                {
                    names.push((entry.file_name(), is_photo(&path)));
                }
            }
        }
        Self { names, listed }
    }

    /// Another file with the stem of `photo`; another photo, unless `any` is set.
    pub(super) fn rival(&self, photo: &Path, any: bool) -> Option<&OsStr> {
        let names = self.names.get(&stem_key(photo))?;
        let mut others =
            names.iter().filter(|(name, _)| Some(name.as_os_str()) != photo.file_name());
        others.find(|(_, is_photo)| any || *is_photo).map(|(name, _)| name.as_os_str())
    }

    /// Whether the folder of `photo` could be listed.
    pub(super) fn are_known(&self, photo: &Path) -> bool {
        self.listed.contains(folder_of(photo))
    }
}

/// Folder and stem. Some file systems and programs know no case.
fn stem_key(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    folder_of(path).join(stem)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The folders of `photos`, each once.
pub(super) fn folders(photos: &[InputPhoto]) -> HashSet<&Path> {
    photos.iter().map(|photo| folder_of(&photo.path)).collect()
}

//! Inputs to start from: the files of the tests, and short texts.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Seeds;

/// The longest file that becomes a seed: mutations of a longer one rarely hit its structure.
const MAX_BYTES: u64 = 16 << 10;

/// Writes every seed to a file in `folder`.
pub(crate) fn write(folder: &Path, seeds: &Seeds) {
    fs::create_dir_all(folder).expect("the folder for seeds can be made");
    for (name, bytes) in seeds {
        fs::write(folder.join(name), bytes).expect("a seed can be written");
    }
    println!("{} seeds in {}", seeds.len(), folder.display());
}

/// The short files below `folder` of this repository whose names end with one of `endings`.
pub(crate) fn files(folder: &str, endings: &[&str]) -> Seeds {
    let mut seeds = Seeds::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path: PathBuf = entry.expect("a file of the repository").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let size = path.metadata().map_or(0, |metadata| metadata.len());
            if path.is_dir() {
                folders.push(path);
            } else if size <= MAX_BYTES && endings.iter().any(|ending| name.ends_with(ending)) {
                seeds.push((name, fs::read(path).expect("a file of the repository")));
            }
        }
    }
    assert!(!seeds.is_empty(), "{folder} has no short files {endings:?}");
    seeds
}

/// Seeds of texts.
pub(crate) fn texts<const N: usize>(texts: [impl AsRef<[u8]>; N]) -> Seeds {
    let numbered = texts.iter().enumerate();
    numbered.map(|(at, text)| (format!("text{at}"), text.as_ref().to_vec())).collect()
}

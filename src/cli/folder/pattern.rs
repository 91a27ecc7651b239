//! Patterns such as `2026-*/*.jpg`.
//!
//! The search of the crate `glob` leaves out names that are not UTF-8, so only its patterns are used.

use std::io;
use std::path::{Path, PathBuf, is_separator};

use glob::{Pattern, PatternError};
use walkdir::WalkDir;

/// A folder that could not be searched, and why.
pub(super) type Unsearchable = (PathBuf, io::Error);

/// The paths that match a pattern, by name in each folder, and the folders that could not be searched.
///
/// # Errors
/// The pattern is not valid.
pub(super) fn search(pattern: &str) -> Result<(Vec<PathBuf>, Vec<Unsearchable>), PatternError> {
    let mut found = vec![PathBuf::new()];
    let mut problems = Vec::new();
    for component in components(pattern) {
        let mut next = Vec::new();
        if component == "**" {
            found.iter().for_each(|base| subfolders(base, &mut next, &mut problems));
        } else if component.contains(['*', '?', '[']) {
            let component = Pattern::new(component)?;
            for base in found.iter().filter(|base| shown(base).is_dir()) {
                match children(base, &component) {
                    Ok(children) => next.extend(children),
                    Err(error) => problems.push((base.clone(), error)),
                }
            }
        } else {
            let literal = found.iter().map(|base| base.join(component));
            next.extend(literal.filter(|path| path.symlink_metadata().is_ok()));
        }
        found = next;
    }
    Ok((found, problems))
}

/// The root, if the pattern begins with one, and then each part between separators.
fn components(pattern: &str) -> impl Iterator<Item = &str> {
    let root = match pattern.find(is_separator) {
        Some(0) => 1,
        Some(2) if cfg!(windows) && pattern[..2].ends_with(':') => 3,
        _ => 0,
    };
    let (root, rest) = pattern.split_at(root);
    let parts = rest.split(is_separator).filter(|part| !part.is_empty() && *part != ".");
    (!root.is_empty()).then_some(root).into_iter().chain(parts)
}

/// The folder itself: the current one has no name in front of what is found in it.
fn shown(base: &Path) -> &Path {
    if base.as_os_str().is_empty() { Path::new(".") } else { base }
}

fn children(base: &Path, component: &Pattern) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in shown(base).read_dir()? {
        let name = entry?.file_name();
        // A name that is not UTF-8 has other characters in place of the invalid bytes.
        if component.matches(&name.to_string_lossy()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names.into_iter().map(|name| base.join(name)).collect())
}

/// `base` and all folders in it, but not through links.
fn subfolders(base: &Path, found: &mut Vec<PathBuf>, problems: &mut Vec<Unsearchable>) {
    for entry in WalkDir::new(shown(base)).sort_by_file_name() {
        match entry {
            Ok(entry) if entry.file_type().is_dir() || entry.depth() == 0 => {
                let path = entry.into_path();
                found.push(match path.strip_prefix(".") {
                    Ok(path) if base.as_os_str().is_empty() => path.to_owned(),
                    _ => path,
                });
            }
            Ok(_) => {}
            Err(error) => {
                let path = error.path().unwrap_or(base).to_owned();
                problems.push((path, error.into()));
            }
        }
    }
}

//! Which photos a command is about: files, folders, patterns, and lists on standard input.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::FileType;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::name;
use cutline_error::{Error, ErrorKind, Result};

/// Stands for standard input.
const STDIN: &str = "-";

/// The extensions of photos in folders. The format of a photo is detected from its bytes; but a folder
/// holds many other files, and each would have to be opened.
const EXTENSIONS: [&str; 11] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"];

/// A photo to be captioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct InputPhoto {
    /// The path as it was given; for a photo in a folder, that folder's path joined with the rest.
    pub(in crate::cli) path: PathBuf,
    /// The bytes, if they came on standard input.
    pub(in crate::cli) content: Option<Vec<u8>>,
}

impl InputPhoto {
    /// The path for a line of text or a message.
    pub(in crate::cli) fn name(&self) -> String {
        name::line(&self.path)
    }
}

/// Why a file in a folder, pattern or list is not captioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum SkipReason {
    Hidden,
    UnknownFormat,
    Link,
    Folder,
}

impl SkipReason {
    /// The reasons, and how the summary counts them.
    pub(in crate::cli) const ALL: [(Self, &'static str); 4] = [
        (Self::Hidden, "hidden"),
        (Self::UnknownFormat, "of unknown format"),
        (Self::Link, "links"),
        (Self::Folder, "folders"),
    ];
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hidden => "is hidden",
            Self::UnknownFormat => "has no extension of an image format",
            Self::Link => "is a symbolic link",
            Self::Folder => "is a subfolder; --recursive searches it",
        })
    }
}

/// The photos that the arguments of a command stand for.
#[derive(Debug, Default)]
pub(in crate::cli) struct Inputs {
    /// In the order of the arguments; those of a folder by name.
    pub(in crate::cli) photos: Vec<InputPhoto>,
    pub(in crate::cli) skipped: Vec<(PathBuf, SkipReason)>,
    /// Arguments that match nothing, each with a sentence.
    pub(in crate::cli) problems: Vec<String>,
    found: HashSet<PathBuf>,
}

impl Inputs {
    /// Expands `arguments`.
    ///
    /// # Errors
    /// Standard input cannot be read, or is named twice.
    pub(in crate::cli) fn find<'a>(
        arguments: impl IntoIterator<Item = &'a PathBuf>,
        recursive: bool,
    ) -> Result<Self> {
        let mut inputs = Self::default();
        let mut stdin_read = false;
        for argument in arguments {
            if argument.as_os_str() != STDIN {
                inputs.argument(argument, recursive);
            } else if std::mem::replace(&mut stdin_read, true) {
                return Err(Error::new(
                    ErrorKind::Config,
                    "- is given twice, but standard input can be read only once; leave one out",
                ));
            } else {
                let list = read_stdin(u64::MAX)?;
                paths(&list).for_each(|path| inputs.listed(path));
            }
        }
        Ok(inputs)
    }

    /// The image on standard input. Reading stops as soon as it is known to be too large.
    ///
    /// # Errors
    /// Standard input cannot be read.
    pub(in crate::cli) fn of_stdin(max_bytes: usize) -> Result<Self> {
        let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
        let photo = InputPhoto { path: STDIN.into(), content: Some(read_stdin(limit)?) };
        Ok(Self { photos: vec![photo], ..Self::default() })
    }

    /// How many files were skipped, by reason; empty if none was.
    pub(in crate::cli) fn skipped_summary(&self) -> String {
        let counts = SkipReason::ALL.map(|(reason, name)| (self.skipped(reason), name));
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        counts.map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }

    fn skipped(&self, reason: SkipReason) -> usize {
        self.skipped.iter().filter(|(_, skipped)| *skipped == reason).count()
    }

    fn argument(&mut self, argument: &Path, recursive: bool) {
        if argument.is_dir() {
            self.folder(argument, recursive);
            return;
        }
        match argument.to_str().filter(|text| text.contains(['*', '?', '['])) {
            Some(pattern) if !argument.exists() => self.pattern(pattern, recursive),
            // A file that does not exist is reported when it is its turn.
            _ => self.named(argument),
        }
    }

    /// A path of a list. The list may name everything in a folder, so it is filtered like a folder.
    fn listed(&mut self, path: PathBuf) {
        match path.symlink_metadata() {
            Ok(metadata) => self.found(path, metadata.file_type()),
            Err(_) => self.named(&path),
        }
    }

    /// A file that was named explicitly: always captioned, as often as it was named.
    fn named(&mut self, path: &Path) {
        self.found.insert(path.to_owned());
        self.photos.push(InputPhoto { path: path.to_owned(), content: None });
    }

    fn folder(&mut self, folder: &Path, recursive: bool) {
        let depth = if recursive { usize::MAX } else { 1 };
        let mut entries =
            WalkDir::new(folder).min_depth(1).max_depth(depth).sort_by_file_name().into_iter();
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) => {
                    let kind = entry.file_type();
                    if kind.is_dir() && is_hidden(entry.path()) {
                        entries.skip_current_dir();
                    } else if kind.is_dir() && recursive {
                        continue;
                    }
                    self.found(entry.into_path(), kind);
                }
                Err(error) => {
                    let path = error.path().unwrap_or(folder).display().to_string();
                    let cause = error.io_error().map_or("it is a loop".into(), ToString::to_string);
                    self.unsearchable(&path, &cause);
                }
            }
        }
    }

    fn pattern(&mut self, pattern: &str, recursive: bool) {
        let found = match glob::glob(pattern) {
            Ok(found) => found,
            Err(error) => {
                self.problems
                    .push(format!("{pattern}: is not a valid pattern ({error}); correct it"));
                return;
            }
        };
        let mut any = false;
        for path in found {
            any = true;
            let path = match path {
                Ok(path) => path,
                Err(error) => {
                    let path = error.path().display().to_string();
                    self.unsearchable(&path, &error.error().to_string());
                    continue;
                }
            };
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() && recursive && !is_hidden(&path) => {
                    self.folder(&path, recursive);
                }
                _ => self.listed(path),
            }
        }
        if !any {
            self.problems.push(format!("{pattern}: there is no such file; check the pattern"));
        }
    }

    fn unsearchable(&mut self, path: &str, cause: &str) {
        self.problems.push(format!("{path}: cannot be searched ({cause}); check its permissions"));
    }

    /// A file that was found rather than named.
    fn found(&mut self, path: PathBuf, kind: FileType) {
        let skip = if is_hidden(&path) {
            Some(SkipReason::Hidden)
        } else if kind.is_symlink() {
            Some(SkipReason::Link)
        } else if kind.is_dir() {
            Some(SkipReason::Folder)
        } else if kind.is_file() && has_image_extension(&path) {
            None
        } else {
            Some(SkipReason::UnknownFormat)
        };
        match skip {
            Some(reason) => self.skipped.push((path, reason)),
            // A folder and a file in it, or two patterns, may find the same photo.
            None if !self.found.insert(path.clone()) => {}
            None => self.photos.push(InputPhoto { path, content: None }),
        }
    }
}

/// Whether a file is named like a photo.
pub(super) fn is_photo(path: &Path) -> bool {
    has_image_extension(path)
}

fn has_image_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn read_stdin(limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Io, format!("standard input cannot be read ({error}); check it"))
    })?;
    Ok(bytes)
}

/// The paths of a list. They end with NUL, as `find -print0` and `git ls-files -z` write them, or else
/// with a line break.
fn paths(list: &[u8]) -> impl Iterator<Item = PathBuf> {
    let end = if list.contains(&0) { 0 } else { b'\n' };
    list.split(move |byte| *byte == end).filter_map(move |path| {
        let path = if end == b'\n' { path.strip_suffix(b"\r").unwrap_or(path) } else { path };
        if path.is_empty() { None } else { Some(path_of(path)) }
    })
}

#[cfg(unix)]
fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(not(unix))]
fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn find(folder: &tempfile::TempDir, arguments: &[&str], recursive: bool) -> Inputs {
        let arguments: Vec<PathBuf> =
            arguments.iter().map(|argument| folder.path().join(argument)).collect();
        Inputs::find(&arguments, recursive).unwrap()
    }

    fn names(inputs: &Inputs, folder: &tempfile::TempDir) -> Vec<String> {
        let short = |photo: &InputPhoto| {
            photo.path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned()
        };
        inputs.photos.iter().map(short).collect()
    }

    #[test]
    fn photos_of_a_folder_are_sorted_and_other_files_are_counted() {
        let folder =
            tree(&["b.JPG", "a.png", "c.txt", ".d.jpg", "e/f.webp", "e/.g/h.jpg", ".i/j.jpg"]);
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path().join("a.png"), folder.path().join("k.png"))
            .unwrap();
        let flat = find(&folder, &[""], false);
        assert_eq!(names(&flat, &folder), ["a.png", "b.JPG"]);
        assert_eq!(
            (flat.skipped(SkipReason::Hidden), flat.skipped(SkipReason::UnknownFormat)),
            (2, 1)
        );
        assert_eq!((flat.skipped(SkipReason::Folder), flat.problems.len()), (1, 0));
        #[cfg(unix)]
        assert_eq!(flat.skipped(SkipReason::Link), 1);
        let deep = find(&folder, &[""], true);
        assert_eq!(names(&deep, &folder), ["a.png", "b.JPG", "e/f.webp"]);
        assert_eq!((deep.skipped(SkipReason::Hidden), deep.skipped(SkipReason::Folder)), (3, 0));
    }

    #[test]
    fn named_files_are_always_taken_and_found_files_once() {
        let folder = tree(&["a.jpg", "b.dat", ".c.jpg"]);
        let named = find(&folder, &["b.dat", ".c.jpg", "none.jpg", "a.jpg", "a.jpg"], false);
        assert_eq!(names(&named, &folder), ["b.dat", ".c.jpg", "none.jpg", "a.jpg", "a.jpg"]);
        let found = find(&folder, &["a.jpg", "", "*.jpg"], false);
        assert_eq!(names(&found, &folder), ["a.jpg"]);
    }

    #[test]
    fn patterns_match_as_in_a_shell_and_no_match_is_a_problem() {
        let folder = tree(&["a/1.jpg", "a/2.png", "b/3.jpg", "[4].jpg"]);
        let inputs = find(&folder, &["*/*.jpg"], false);
        assert_eq!(names(&inputs, &folder), ["a/1.jpg", "b/3.jpg"]);
        let inputs = find(&folder, &["**/*.png", "[4].jpg", "*.gif"], false);
        assert_eq!(names(&inputs, &folder), ["a/2.png", "[4].jpg"]);
        assert_eq!(inputs.problems.len(), 1);
        assert!(inputs.problems[0].contains("*.gif"), "{:?}", inputs.problems);
    }

    #[test]
    fn lists_are_separated_by_line_breaks_or_nuls() {
        let list = |text: &str| paths(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(list("a b.jpg\r\n\nc.jpg"), [Path::new("a b.jpg"), Path::new("c.jpg")]);
        assert_eq!(list("a\nb.jpg\0c.jpg\0"), [Path::new("a\nb.jpg"), Path::new("c.jpg")]);
        assert!(list("").is_empty());
    }
}

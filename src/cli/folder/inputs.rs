//! Which photos are meant: files, folders, patterns, and lists on standard input.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::FileType;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use cutline_error::{Error, ErrorKind, Result};

/// The name of the image that comes on standard input.
pub(in crate::cli) const STDIN: &str = "-";

/// What the files in a folder that are photos end in. What a file is is told from its bytes; but a
/// folder holds many other things, and each would have to be opened.
const ENDINGS: [&str; 11] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"];

/// One photo to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Photo {
    /// As it was given, or the folder as it was given with what it holds.
    pub(in crate::cli) path: PathBuf,
    /// Its content, where that is no file's.
    pub(in crate::cli) content: Option<Vec<u8>>,
}

impl Photo {
    pub(in crate::cli) fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// Why something that was found is no photo for this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Skip {
    Hidden,
    UnknownFormat,
    Link,
    Folder,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hidden => "is hidden",
            Self::UnknownFormat => "does not end like a photo",
            Self::Link => "is a link",
            Self::Folder => "is a folder in a folder; --recursive looks into it",
        })
    }
}

/// What was asked for.
#[derive(Debug, Default)]
pub(in crate::cli) struct Inputs {
    /// In the order of the arguments, those of a folder by name.
    pub(in crate::cli) photos: Vec<Photo>,
    pub(in crate::cli) skipped: Vec<(PathBuf, Skip)>,
    /// Arguments that stand for nothing, each with a sentence.
    pub(in crate::cli) problems: Vec<String>,
    found: HashSet<PathBuf>,
}

impl Inputs {
    /// What `arguments` stand for.
    ///
    /// # Errors
    /// Standard input cannot be read, or is asked for twice.
    pub(in crate::cli) fn find<'a>(
        arguments: impl IntoIterator<Item = &'a PathBuf>,
        recursive: bool,
    ) -> Result<Self> {
        let mut inputs = Self::default();
        let mut listed = false;
        for argument in arguments {
            if argument.as_os_str() != STDIN {
                inputs.argument(argument, recursive);
            } else if std::mem::replace(&mut listed, true) {
                return Err(Error::new(
                    ErrorKind::Config,
                    "- is given twice, but standard input can be read only once; leave one out",
                ));
            } else {
                let list = read_stdin(u64::MAX)?;
                paths(&list).for_each(|path| inputs.argument_of_list(path));
            }
        }
        Ok(inputs)
    }

    /// The image on standard input, of which no more is read than shows that it is too large.
    ///
    /// # Errors
    /// It cannot be read.
    pub(in crate::cli) fn of_stdin(max_bytes: usize) -> Result<Self> {
        let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
        let photo = Photo { path: STDIN.into(), content: Some(read_stdin(limit)?) };
        Ok(Self { photos: vec![photo], ..Self::default() })
    }

    /// How many were skipped for this reason.
    pub(in crate::cli) fn skipped(&self, why: Skip) -> usize {
        self.skipped.iter().filter(|(_, skip)| *skip == why).count()
    }

    fn argument(&mut self, argument: &Path, recursive: bool) {
        if argument.is_dir() {
            self.folder(argument, recursive);
        } else if argument.exists() {
            self.name(argument);
        } else {
            match argument.to_str().filter(|text| text.contains(['*', '?', '['])) {
                Some(pattern) => self.pattern(pattern, recursive),
                // What is wrong with it is said when it is its turn.
                None => self.name(argument),
            }
        }
    }

    /// A list may be of everything that a folder holds, so it is searched like one.
    fn argument_of_list(&mut self, path: PathBuf) {
        match path.symlink_metadata() {
            Ok(metadata) => self.consider(path, metadata.file_type()),
            Err(_) => self.name(&path),
        }
    }

    /// A file that somebody typed: it is done, as often as it was typed.
    fn name(&mut self, path: &Path) {
        self.found.insert(path.to_owned());
        self.photos.push(Photo { path: path.to_owned(), content: None });
    }

    fn folder(&mut self, folder: &Path, recursive: bool) {
        let depth = if recursive { usize::MAX } else { 1 };
        let mut entries =
            WalkDir::new(folder).min_depth(1).max_depth(depth).sort_by_file_name().into_iter();
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) => {
                    let hidden = is_hidden(entry.file_name());
                    if entry.file_type().is_dir() && hidden {
                        entries.skip_current_dir();
                    }
                    self.entry(entry, recursive);
                }
                Err(error) => {
                    let path = error.path().unwrap_or(folder).display().to_string();
                    let cause = error.io_error().map_or("it is a loop".into(), error_text);
                    self.problems.push(format!(
                        "{path}: cannot be searched ({cause}); check its permissions"
                    ));
                }
            }
        }
    }

    fn entry(&mut self, entry: DirEntry, recursive: bool) {
        let kind = entry.file_type();
        if kind.is_dir() && recursive && !is_hidden(entry.file_name()) {
            return;
        }
        self.consider(entry.into_path(), kind);
    }

    fn pattern(&mut self, pattern: &str, recursive: bool) {
        // Hidden files are found as well, so that they are counted.
        let found = match glob::glob(pattern) {
            Ok(found) => found,
            Err(error) => {
                self.problems.push(format!("{pattern}: is no pattern ({error}); correct it"));
                return;
            }
        };
        let mut any = false;
        for path in found {
            any = true;
            match path {
                Ok(path) => match path.symlink_metadata() {
                    Ok(metadata) if metadata.is_dir() && !is_hidden_path(&path) && recursive => {
                        self.folder(&path, recursive);
                    }
                    Ok(metadata) => self.consider(path, metadata.file_type()),
                    Err(_) => self.name(&path),
                },
                Err(error) => self.problems.push(format!(
                    "{}: cannot be searched ({}); check its permissions",
                    error.path().display(),
                    error.error()
                )),
            }
        }
        if !any {
            self.problems.push(format!("{pattern}: there is no such file; check the pattern"));
        }
    }

    /// What was found, not named.
    fn consider(&mut self, path: PathBuf, kind: FileType) {
        let skip = if path.file_name().is_some_and(is_hidden) {
            Some(Skip::Hidden)
        } else if kind.is_symlink() {
            Some(Skip::Link)
        } else if kind.is_dir() {
            Some(Skip::Folder)
        } else if kind.is_file() && ends_like_a_photo(&path) {
            None
        } else {
            Some(Skip::UnknownFormat)
        };
        match skip {
            Some(skip) => self.skipped.push((path, skip)),
            // A folder and a file in it, or two patterns, mean it once.
            None if !self.found.insert(path.clone()) => {}
            None => self.photos.push(Photo { path, content: None }),
        }
    }
}

fn ends_like_a_photo(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(ending))
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn is_hidden_path(path: &Path) -> bool {
    path.file_name().is_some_and(is_hidden)
}

fn error_text(error: &io::Error) -> String {
    error.to_string()
}

fn read_stdin(limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Io, format!("standard input cannot be read ({error}); check it"))
    })?;
    Ok(bytes)
}

/// The paths of a list: those of `find -print0` and `git ls-files -z` end with NUL, others with a
/// line.
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
        let short = |photo: &Photo| {
            photo.path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned()
        };
        inputs.photos.iter().map(short).collect()
    }

    #[test]
    fn a_folder_is_its_photos_by_name_and_the_rest_is_counted() {
        let folder =
            tree(&["b.JPG", "a.png", "c.txt", ".d.jpg", "e/f.webp", "e/.g/h.jpg", ".i/j.jpg"]);
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path().join("a.png"), folder.path().join("k.png"))
            .unwrap();
        let flat = find(&folder, &[""], false);
        assert_eq!(names(&flat, &folder), ["a.png", "b.JPG"]);
        assert_eq!((flat.skipped(Skip::Hidden), flat.skipped(Skip::UnknownFormat)), (2, 1));
        assert_eq!((flat.skipped(Skip::Folder), flat.problems.len()), (1, 0));
        #[cfg(unix)]
        assert_eq!(flat.skipped(Skip::Link), 1);
        let deep = find(&folder, &[""], true);
        assert_eq!(names(&deep, &folder), ["a.png", "b.JPG", "e/f.webp"]);
        assert_eq!((deep.skipped(Skip::Hidden), deep.skipped(Skip::Folder)), (3, 0));
    }

    #[test]
    fn a_named_file_is_done_whatever_it_is_called_and_a_found_one_once() {
        let folder = tree(&["a.jpg", "b.dat", ".c.jpg"]);
        let named = find(&folder, &["b.dat", ".c.jpg", "none.jpg", "a.jpg", "a.jpg"], false);
        assert_eq!(names(&named, &folder), ["b.dat", ".c.jpg", "none.jpg", "a.jpg", "a.jpg"]);
        let found = find(&folder, &["a.jpg", "", "*.jpg"], false);
        assert_eq!(names(&found, &folder), ["a.jpg"]);
    }

    #[test]
    fn patterns_are_what_a_shell_makes_of_them_and_none_is_a_mistake() {
        let folder = tree(&["a/1.jpg", "a/2.png", "b/3.jpg", "[4].jpg"]);
        let inputs = find(&folder, &["*/*.jpg"], false);
        assert_eq!(names(&inputs, &folder), ["a/1.jpg", "b/3.jpg"]);
        let inputs = find(&folder, &["**/*.png", "[4].jpg", "*.gif"], false);
        assert_eq!(names(&inputs, &folder), ["a/2.png", "[4].jpg"]);
        assert_eq!(inputs.problems.len(), 1);
        assert!(inputs.problems[0].contains("*.gif"), "{:?}", inputs.problems);
    }

    #[test]
    fn a_list_is_of_lines_or_of_nuls() {
        let list = |text: &str| paths(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(list("a b.jpg\r\n\nc.jpg"), [Path::new("a b.jpg"), Path::new("c.jpg")]);
        assert_eq!(list("a\nb.jpg\0c.jpg\0"), [Path::new("a\nb.jpg"), Path::new("c.jpg")]);
        assert!(list("").is_empty());
    }
}

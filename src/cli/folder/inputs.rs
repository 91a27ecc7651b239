//! Which photos a command is about: files, folders, patterns, and lists on standard input.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fmt;
use std::fs::FileType;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::{name, pattern};
use crate::text;
use cutline_error::{Error, ErrorKind, Result};

/// Stands for standard input.
const STDIN: &str = "-";

/// The most bytes of a list: it is held in memory.
const MAX_LIST: u64 = 256 << 20;

/// The extensions of photos in folders. The format of a photo is detected from its bytes; but a folder
/// holds many other files, and each would have to be opened.
const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif"];

/// The extensions of photos that cannot be read: those of phones, the raw formats of cameras, and the
/// successors of JPEG.
#[rustfmt::skip]
const UNREADABLE: [&str; 44] = [
    "heic", "heif", "heics", "heifs", "hif", "avci", "avifs",
    "3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "fff", "gpr", "iiq", "kdc", "mef", "mos",
    "mrw", "nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f",
    "jxl", "jp2", "j2k", "jpf", "jpx", "jxr", "hdp", "wdp", "psd", "psb",
];

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

/// Which files in folders and patterns are taken.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::cli) struct Search {
    /// Subfolders are searched too.
    pub(in crate::cli) recursive: bool,
    /// Symbolic links are followed.
    pub(in crate::cli) follow_links: bool,
}

/// Why a file in a folder, pattern or list is not captioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum SkipReason {
    Hidden,
    UnknownFormat,
    /// A photo, so the run does not do everything that was asked for.
    UnreadableFormat,
    Link,
    LinkAgain,
    Folder,
    Special,
}

impl SkipReason {
    /// The reasons, and how the summary counts them.
    const COUNTED: [(Self, &'static str); 6] = [
        (Self::Hidden, "hidden"),
        (Self::UnknownFormat, "of unknown format"),
        (Self::Link, "links"),
        (Self::LinkAgain, "links to folders that are searched already"),
        (Self::Folder, "folders"),
        (Self::Special, "not regular files"),
    ];
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hidden => "is hidden",
            Self::UnknownFormat => "has no extension of an image format",
            Self::UnreadableFormat => "is a photo in a format that cannot be read",
            Self::Link => "is a symbolic link; --follow-links takes it",
            Self::LinkAgain => "is a symbolic link to a folder that is searched already",
            Self::Folder => "is a subfolder; --recursive searches it",
            Self::Special => "is not a regular file",
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
    search: Search,
    found: HashSet<PathBuf>,
    /// The folders that were searched, without links in their paths.
    searched: HashSet<PathBuf>,
    /// Links to folders, which are searched last: what can be reached without a link is found under its
    /// own path.
    links: VecDeque<PathBuf>,
}

impl Inputs {
    /// Expands `arguments`.
    ///
    /// # Errors
    /// Standard input cannot be read, or is named twice.
    pub(in crate::cli) fn find<'a>(
        arguments: impl IntoIterator<Item = &'a PathBuf>,
        search: Search,
    ) -> Result<Self> {
        let mut inputs = Self { search, ..Self::default() };
        let mut stdin_read = false;
        for argument in arguments {
            if argument.as_os_str() != STDIN {
                inputs.argument(argument);
            } else if std::mem::replace(&mut stdin_read, true) {
                return Err(Error::new(
                    ErrorKind::Config,
                    "- is given twice, but standard input can be read only once; leave one out",
                ));
            } else {
                let list = read_list()?;
                let list = text::without_mark(&list).map_err(|why| {
                    Error::new(ErrorKind::Config, format!("the list on standard input {why}"))
                })?;
                paths(list).for_each(|path| inputs.listed(path));
            }
        }
        while let Some(link) = inputs.links.pop_front() {
            inputs.folder(&link, true);
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
        let counts = SkipReason::COUNTED.map(|(reason, name)| (self.skipped(reason), name));
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        counts.map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }

    /// How many files were skipped for this reason.
    pub(in crate::cli) fn skipped(&self, reason: SkipReason) -> usize {
        self.skipped.iter().filter(|(_, skipped)| *skipped == reason).count()
    }

    /// The sentence about photos in formats that cannot be read, if there are any.
    pub(in crate::cli) fn unreadable(&self) -> Option<String> {
        let mut formats: BTreeMap<String, usize> = BTreeMap::new();
        for (path, reason) in &self.skipped {
            if *reason == SkipReason::UnreadableFormat {
                *formats.entry(extension(path).to_ascii_uppercase()).or_default() += 1;
            }
        }
        let photos = match formats.values().sum::<usize>() {
            0 => return None,
            1 => "1 photo is in a format".to_owned(),
            many => format!("{many} photos are in formats"),
        };
        let formats = formats.iter().map(|(format, count)| format!("{count} {format}"));
        let formats = formats.collect::<Vec<_>>().join(", ");
        Some(format!("{photos} that cannot be read ({formats}); convert them to JPEG, PNG or TIFF"))
    }

    /// Whether something that was asked for cannot be done.
    pub(in crate::cli) fn incomplete(&self) -> bool {
        !self.problems.is_empty() || self.skipped(SkipReason::UnreadableFormat) > 0
    }

    fn argument(&mut self, argument: &Path) {
        if argument.is_dir() {
            self.folder(argument, false);
            return;
        }
        match argument.to_str().filter(|text| text.contains(['*', '?', '['])) {
            Some(pattern) if !argument.exists() => self.pattern(pattern),
            // A file that does not exist is reported when it is its turn.
            _ => self.named(argument),
        }
    }

    /// A path of a list. The list may name everything in a folder, so it is filtered like a folder. But
    /// a link in it is meant. A path in quotes, as in our own output, is that path unless there is a file
    /// with quotes in its name.
    fn listed(&mut self, path: PathBuf) {
        let path = match path.to_str().map(name::path) {
            Some(unquoted) if path.symlink_metadata().is_err() => unquoted,
            _ => path,
        };
        match path.metadata() {
            Ok(metadata) => self.found(path, metadata.file_type()),
            Err(_) => self.named(&path),
        }
    }

    /// A file that was named explicitly: always captioned, as often as it was named.
    fn named(&mut self, path: &Path) {
        self.found.insert(path.to_owned());
        self.photos.push(InputPhoto { path: path.to_owned(), content: None });
    }

    /// Searches a folder. One that a link leads to is searched only if it was not searched before, and
    /// so are its subfolders: links may form loops and lead out of the folder.
    fn folder(&mut self, folder: &Path, through_link: bool) {
        let depth = if self.search.recursive { usize::MAX } else { 1 };
        let mut entries = WalkDir::new(folder).max_depth(depth).sort_by_file_name().into_iter();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = name::line(error.path().unwrap_or(folder));
                    let cause = error.io_error().map_or("it is a loop".into(), ToString::to_string);
                    self.unsearchable(&path, &cause);
                    continue;
                }
            };
            let (kind, hidden) = (entry.file_type(), is_hidden(entry.path()));
            let searched =
                entry.depth() == 0 || (kind.is_dir() && self.search.recursive && !hidden);
            if searched && !self.is_first_search(entry.path()) && through_link {
                entries.skip_current_dir();
                if entry.depth() == 0 {
                    self.skipped.push((entry.into_path(), SkipReason::LinkAgain));
                }
            } else if !searched {
                if kind.is_dir() && hidden {
                    entries.skip_current_dir();
                }
                self.found(entry.into_path(), kind);
            }
        }
    }

    /// Remembers a folder, and says whether it was not searched before.
    fn is_first_search(&mut self, folder: &Path) -> bool {
        // Without links every folder is reached once. A folder that has no real path cannot be read.
        !self.search.follow_links
            || folder.canonicalize().is_ok_and(|folder| self.searched.insert(folder))
    }

    fn pattern(&mut self, pattern: &str) {
        let (found, problems) = match pattern::search(pattern) {
            Ok(found) => found,
            Err(error) => {
                self.problems
                    .push(format!("{pattern}: is not a valid pattern ({error}); correct it"));
                return;
            }
        };
        for (path, error) in &problems {
            self.unsearchable(&name::line(path), &error.to_string());
        }
        if found.is_empty() && problems.is_empty() {
            self.problems.push(format!("{pattern}: there is no such file; check the pattern"));
        }
        for path in found {
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() && self.search.recursive && !is_hidden(&path) => {
                    self.folder(&path, false);
                }
                Ok(metadata) => self.found(path, metadata.file_type()),
                // It was deleted meanwhile, which is reported when it is its turn.
                Err(_) => self.named(&path),
            }
        }
    }

    fn unsearchable(&mut self, path: &str, cause: &str) {
        self.problems.push(format!("{path}: cannot be searched ({cause}); check its permissions"));
    }

    /// A file that was found rather than named.
    fn found(&mut self, path: PathBuf, kind: FileType) {
        let follows = self.search.follow_links && kind.is_symlink();
        let kind = match path.metadata() {
            Ok(target) if follows => target.file_type(),
            _ => kind,
        };
        // A link that leads nowhere is reported when it is its turn.
        let is_file = kind.is_file() || (follows && kind.is_symlink());
        let skip = if is_hidden(&path) {
            SkipReason::Hidden
        } else if kind.is_symlink() && !follows {
            SkipReason::Link
        } else if kind.is_dir() && follows && self.search.recursive {
            self.links.push_back(path);
            return;
        } else if kind.is_dir() {
            SkipReason::Folder
        } else if !is_file {
            SkipReason::Special
        } else if is_photo(&path) {
            // A folder and a file in it, or two patterns, may find the same photo.
            if self.found.insert(path.clone()) {
                self.photos.push(InputPhoto { path, content: None });
            }
            return;
        } else if has_extension(&path, &UNREADABLE) {
            SkipReason::UnreadableFormat
        } else {
            SkipReason::UnknownFormat
        };
        self.skipped.push((path, skip));
    }
}

/// Whether a file is named like a photo that can be read.
pub(super) fn is_photo(path: &Path) -> bool {
    has_extension(path, &EXTENSIONS)
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    extensions.iter().any(|known| known.eq_ignore_ascii_case(extension(path)))
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

fn read_list() -> Result<Vec<u8>> {
    let list = read_stdin(MAX_LIST + 1)?;
    if list.len() as u64 <= MAX_LIST {
        return Ok(list);
    }
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "the list on standard input has more than {MAX_LIST} bytes; give folders instead, or \
             several shorter lists"
        ),
    ))
}

/// The paths of a list. They end with NUL, as `find -print0` and `git ls-files -z` write them, or else
/// with a line break.
pub(in crate::cli) fn paths(list: &[u8]) -> impl Iterator<Item = PathBuf> {
    let end = if list.contains(&0) { 0 } else { b'\n' };
    list.split(move |byte| *byte == end).filter_map(move |path| {
        let path = if end == b'\n' { path.strip_suffix(b"\r").unwrap_or(path) } else { path };
        if path.is_empty() { None } else { Some(name::path_of(path.to_vec())) }
    })
}

#[cfg(test)]
mod tests;

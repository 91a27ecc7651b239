//! Where a model comes from: the binary, a folder, a GGUF file or a hub.

#[cfg(feature = "embedded-model")]
mod embedded;
mod folder;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::hub::{self, HubOptions};
use cutline_blip::weights::Weights;
use cutline_error::{Error, ErrorKind, Result};

/// Where the model comes from; parsed from the setting `MODEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The model in the binary.
    Embedded,
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// A GGUF file, with `config.json` and the tokenizer in the same folder.
    Gguf(PathBuf),
    /// A repository on a Hugging Face hub.
    Hub {
        /// `organisation/name`.
        repo: String,
        /// Branch, tag or commit; `None` for `main`.
        revision: Option<String>,
    },
}

impl FromStr for ModelSource {
    type Err = Error;

    /// An empty text or `embedded` is the embedded model. A text that exists as a path, or looks
    /// like one (it starts with `.`, `/` or `~`, or has a backslash, a colon or more than one
    /// slash), is a path and never a hub id. Anything else must be `organisation/name` or
    /// `organisation/name@revision`.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || text == "embedded" {
            return Ok(Self::Embedded);
        }
        if text.to_ascii_lowercase().ends_with(".gguf") {
            return Ok(Self::Gguf(text.into()));
        }
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let path_like = text.starts_with(['.', '/', '~'])
            || text.contains(['\\', ':'])
            || repo.matches('/').count() > 1
            || repo.ends_with('/');
        if path_like || Path::new(text).exists() {
            return Ok(Self::Folder(text.into()));
        }
        if !is_repo(repo) {
            return Err(setting(format!(
                "MODEL: there is no folder `{text}`, and a model on the hub is written \
                 organisation/name or organisation/name@revision"
            )));
        }
        match revision {
            Some(revision) if !is_revision(revision) => Err(setting(format!(
                "MODEL: `{revision}` is not a revision; write a branch, a tag or a commit after the @"
            ))),
            revision => Ok(Self::Hub { repo: repo.into(), revision: revision.map(str::to_owned) }),
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Folder(path) | Self::Gguf(path) => write!(f, "{}", path.display()),
            Self::Hub { repo, revision: None } => f.write_str(repo),
            Self::Hub { repo, revision: Some(revision) } => write!(f, "{repo}@{revision}"),
        }
    }
}

/// The files of a model. All required files exist, and all JSON files are well-formed.
#[derive(Debug)]
pub struct ModelFiles {
    /// The name of the model: its hub id, or the name of the folder or file.
    pub id: String,
    /// `embedded`, the path, or the address on the hub.
    pub source: String,
    /// The commit, for a model from a hub.
    pub revision: Option<String>,
    /// `config.json`.
    pub config: Vec<u8>,
    /// The files of the tokenizer.
    pub tokenizer: TokenizerFiles,
    /// `preprocessor_config.json`.
    pub preprocessor: Option<Vec<u8>>,
    /// `generation_config.json`.
    pub generation: Option<Vec<u8>>,
    /// `cutline.json`, which holds what only this program reads.
    pub extras: Option<Vec<u8>>,
    /// The licence that the front matter of `README.md` names.
    pub license: Option<String>,
    /// The tensors.
    pub weights: Weights,
    /// [`Weights::digest`], which identifies the exact weights.
    pub digest: String,
}

impl ModelFiles {
    /// All files except the weights and the model card, with their names in a folder.
    #[must_use]
    pub fn small_files(&self) -> Vec<(&'static str, &[u8])> {
        [
            ("config.json", Some(&self.config)),
            ("tokenizer.json", self.tokenizer.json.as_ref()),
            ("vocab.txt", self.tokenizer.vocab.as_ref()),
            ("tokenizer_config.json", self.tokenizer.config.as_ref()),
            ("preprocessor_config.json", self.preprocessor.as_ref()),
            ("generation_config.json", self.generation.as_ref()),
            ("cutline.json", self.extras.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, bytes)| Some((name, bytes?.as_slice())))
        .collect()
    }
}

/// The files of a tokenizer. All may be missing: a model without one can still be benchmarked.
#[derive(Debug, Clone, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub json: Option<Vec<u8>>,
    /// `vocab.txt`, with a token on each line.
    pub vocab: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub config: Option<Vec<u8>>,
}

/// Finds the model's files, downloads them if necessary, and opens the weights.
///
/// The digest is computed here, from every byte of the weights.
///
/// # Errors
/// A file is missing, truncated or being written, or cannot be downloaded. The message names the
/// file and the remedy.
pub fn open(source: &ModelSource, hub: &HubOptions) -> Result<ModelFiles> {
    match source {
        #[cfg(feature = "embedded-model")]
        ModelSource::Embedded => embedded::open(),
        #[cfg(not(feature = "embedded-model"))]
        ModelSource::Embedded => Err(setting(
            "MODEL is not set and no model is built into this binary; set MODEL to a folder or to \
             a hub id such as Salesforce/blip-image-captioning-base"
                .to_owned(),
        )),
        ModelSource::Folder(path) => folder::open(path),
        ModelSource::Gguf(path) => folder::open_gguf(path),
        ModelSource::Hub { repo, revision } => {
            let snapshot = hub::fetch(repo, revision.as_deref(), hub)?;
            let mut files = folder::open(&snapshot.folder)?;
            files.id.clone_from(repo);
            files.source = format!("{}/{repo}", hub.endpoint());
            files.revision = Some(snapshot.commit);
            Ok(files)
        }
    }
}

fn setting(detail: String) -> Error {
    Error::new(ErrorKind::Config, detail)
}

/// Whether it is `organisation/name` in the characters that the hub allows.
fn is_repo(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
            && !part.contains("--")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    text.split_once('/').is_some_and(|(organisation, name)| part(organisation) && part(name))
}

/// Whether it is a branch, a tag, a commit or `refs/pr/1`, and not a path that leaves the cache.
fn is_revision(text: &str) -> bool {
    text.split('/').all(|part| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: Option<&str>) -> ModelSource {
        ModelSource::Hub { repo: repo.into(), revision: revision.map(str::to_owned) }
    }

    #[test]
    fn an_empty_text_or_its_name_is_the_embedded_model() {
        assert_eq!("embedded".parse::<ModelSource>().unwrap(), ModelSource::Embedded);
        let folder = ModelSource::Folder("./embedded".into());
        assert_eq!("./embedded".parse::<ModelSource>().unwrap(), folder);
        assert_eq!("".parse::<ModelSource>().unwrap(), ModelSource::Embedded);
        assert_eq!("  ".parse::<ModelSource>().unwrap(), ModelSource::Embedded);
    }

    #[test]
    fn organisation_and_name_are_a_hub_id() {
        let base = "Salesforce/blip-image-captioning-base";
        assert_eq!(base.parse::<ModelSource>().unwrap(), hub(base, None));
        let table = ["main", "v1.0", "82a37760796d32b1411fe092ab5d4e227313294b", "refs/pr/7"];
        for revision in table {
            let source: ModelSource = format!("{base}@{revision}").parse().unwrap();
            assert_eq!(source, hub(base, Some(revision)));
            assert_eq!(source.to_string(), format!("{base}@{revision}"));
        }
    }

    #[test]
    fn a_text_that_looks_like_a_path_is_never_a_hub_id() {
        let table = [
            "./models/blip",
            "../blip",
            "/blip",
            "~/blip",
            "models\\blip",
            "C:/blip",
            "a/b/c",
            "a/b/",
        ];
        for text in table {
            assert_eq!(text.parse::<ModelSource>().unwrap(), ModelSource::Folder(text.into()));
        }
        // The tests run in the package's folder, where this exists.
        assert_eq!("src/engine".parse::<ModelSource>().unwrap(), {
            ModelSource::Folder("src/engine".into())
        });
    }

    #[test]
    fn a_gguf_file_is_recognised_by_its_extension() {
        for text in ["blip.gguf", "models/blip-Q4K.GGUF", "/a/b.gguf"] {
            assert_eq!(text.parse::<ModelSource>().unwrap(), ModelSource::Gguf(text.into()));
        }
    }

    #[test]
    fn other_texts_are_refused_with_what_is_expected() {
        for text in ["blip", "blip base", "a/b c", "a/b@", "a/b@../../x", "a/b@x y", "a/..b"] {
            let error = text.parse::<ModelSource>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            assert!(error.detail().starts_with("MODEL: "), "{text}: {error}");
        }
    }
}

//! A folder in Hugging Face layout: `config.json`, the weights, and optional files.

use std::path::{Path, PathBuf};

use super::{ModelFiles, TokenizerFiles};
use crate::engine::layout::{self, GGUF, INDEXES, SINGLES, SMALL};
use crate::text;
use cutline_blip::weights::{CheckedFile, Weights};
use cutline_error::{Error, Result};

/// What programs append to a file's name while they copy or download it.
const UNFINISHED: [&str; 8] =
    ["incomplete", "part", "partial", "tmp", "lock", "download", "crdownload", "aria2"];

/// Opens a folder.
pub(super) fn open(folder: &Path) -> Result<ModelFiles> {
    check_folder(folder)?;
    let weights = weights_of(folder)?;
    read(folder, name_of(folder.canonicalize().as_deref().unwrap_or(folder)), folder, &weights)
}

/// Opens a GGUF file and the folder around it.
pub(super) fn open_gguf(path: &Path) -> Result<ModelFiles> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    check_folder(folder)?;
    refuse_unfinished(path)?;
    read(folder, name_of(&path.with_extension("")), path, &[path.to_path_buf()])
}

fn read(folder: &Path, id: String, source: &Path, weights: &[PathBuf]) -> Result<ModelFiles> {
    let config = json(&folder.join("config.json"))?.ok_or_else(|| {
        Error::model(format!(
            "{} is missing; a model's folder needs config.json and model.safetensors: complete it, \
             or point MODEL at another",
            folder.join("config.json").display(),
        ))
    })?;
    let tokenizer = TokenizerFiles {
        json: json(&folder.join("tokenizer.json"))?,
        vocab: small(&folder.join("vocab.txt"))?,
        config: json(&folder.join("tokenizer_config.json"))?,
    };
    let weights = Weights::from_files(weights)?;
    Ok(ModelFiles {
        id,
        source: source.display().to_string(),
        revision: None,
        config,
        tokenizer,
        preprocessor: json(&folder.join("preprocessor_config.json"))?,
        generation: json(&folder.join("generation_config.json"))?,
        extras: json(&folder.join("cutline.json"))?,
        license: small(&folder.join("README.md"))?.and_then(|text| license_of(&text)),
        digest: weights.digest()?,
        weights,
    })
}

fn check_folder(folder: &Path) -> Result<()> {
    let shown = folder.display();
    if folder.is_dir() {
        return Ok(());
    }
    Err(Error::model(if folder.is_file() {
        format!("{shown} is a file; point MODEL at the folder that holds it, or at a .gguf file")
    } else if folder.starts_with("~") {
        format!(
            "there is no folder {shown}; write the home folder in full in MODEL, `~` is not expanded"
        )
    } else {
        format!("there is no folder {shown}; point MODEL at the folder that holds config.json")
    }))
}

/// The files of the weights: a single file rather than the shards of an index, safetensors rather
/// than PyTorch's format, and GGUF only if there is nothing else, because it is made from one of
/// the others.
fn weights_of(folder: &Path) -> Result<Vec<PathBuf>> {
    for (single, index) in SINGLES.into_iter().zip(INDEXES) {
        let single = folder.join(single);
        refuse_unfinished(&single)?;
        if single.exists() {
            return Ok(vec![single]);
        }
        let index = folder.join(index);
        let Some(bytes) = json(&index)? else { continue };
        return layout::shards(&index.display().to_string(), &bytes)?
            .into_iter()
            .map(|shard| shard_of(folder, &shard, &index))
            .collect();
    }
    let gguf = folder.join(GGUF);
    refuse_unfinished(&gguf)?;
    if gguf.exists() {
        return Ok(vec![gguf]);
    }
    Err(Error::model(format!(
        "{} holds no weights; put model.safetensors (or its shards and their index, or \
         pytorch_model.bin) there, or point MODEL at another folder or at a .gguf file",
        folder.display(),
    )))
}

fn shard_of(folder: &Path, shard: &str, index: &Path) -> Result<PathBuf> {
    let path = folder.join(shard);
    refuse_unfinished(&path)?;
    if path.exists() {
        return Ok(path);
    }
    Err(Error::model(format!(
        "{} is missing, but {} lists it; complete the folder, or wait until the copy has finished",
        path.display(),
        index.display(),
    )))
}

/// The content of a small file; `None` if it does not exist.
fn small(path: &Path) -> Result<Option<Vec<u8>>> {
    refuse_unfinished(path)?;
    if !path.exists() {
        return Ok(None);
    }
    let bytes = CheckedFile::open(path)?.read_all(SMALL)?;
    match text::without_mark(&bytes) {
        Ok(text) => Ok(Some(text.to_vec())),
        Err(why) => Err(Error::model(format!("{} {why}", path.display()))),
    }
}

/// The content of a small file of well-formed JSON; `None` if it does not exist.
fn json(path: &Path) -> Result<Option<Vec<u8>>> {
    let bytes = small(path)?;
    if let Some(bytes) = &bytes {
        layout::check_json(&path.display().to_string(), bytes)?;
    }
    Ok(bytes)
}

/// Refuses a file that another program is still writing, recognised by a temporary file next to it.
fn refuse_unfinished(path: &Path) -> Result<()> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    let appended = UNFINISHED.iter().map(|ending| path.with_file_name(format!("{name}.{ending}")));
    let Some(left) = appended.into_iter().find(|path| path.exists()).or_else(|| rsync_of(path))
    else {
        return Ok(());
    };
    Err(Error::model(format!(
        "{} is being written: {} is next to it; wait until the copy has finished and start again, \
         or delete that file if the copy was interrupted",
        path.display(),
        left.display(),
    )))
}

/// The temporary file of rsync, such as `.model.safetensors.a8Xk2P`.
fn rsync_of(path: &Path) -> Option<PathBuf> {
    let prefix = format!(".{}.", path.file_name()?.to_str()?);
    let random = |rest: &str| rest.len() == 6 && rest.bytes().all(|b| b.is_ascii_alphanumeric());
    std::fs::read_dir(path.parent()?).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(
        |path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(|name| name.strip_prefix(&prefix)).is_some_and(random)
        },
    )
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into())
}

/// `license:` in the front matter of a model card; `license_name:` if that is only `other`.
fn license_of(readme: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(readme);
    let front = text.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let lines: Vec<&str> = front.lines().skip(1).take_while(|line| line.trim() != "---").collect();
    let value = |key: &str| {
        let value = lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    match value("license") {
        Some(other) if other == "other" => value("license_name").or(Some(other)),
        license => license,
    }
}

#[cfg(test)]
mod tests {
    use super::license_of;

    #[test]
    fn the_licence_is_read_from_the_front_matter_only() {
        let table = [
            ("---\ntags:\n- image\nlicense: bsd-3-clause\n---\n# Card", Some("bsd-3-clause")),
            ("---\r\nlicense: 'mit'\r\n---\r\n", Some("mit")),
            ("---\nlicense: other\nlicense_name: llama\n---\n", Some("llama")),
            ("---\ntags: []\n---\nlicense: mit\n", None),
            ("# Card\nlicense: mit\n", None),
            ("", None),
        ];
        for (readme, license) in table {
            assert_eq!(license_of(readme.as_bytes()).as_deref(), license, "{readme:?}");
        }
    }
}

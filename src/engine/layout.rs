//! The layout that folders and the hub share: the names of files in a Hugging Face repository, and
//! the index that lists shards.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::text;
use cutline_error::{Error, Result};

/// Weights in one file, the preferred format first.
pub(super) const SINGLES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// The largest size in bytes of a file that is not one of weights; a larger one is something else.
pub(super) const SMALL: usize = 64 << 20;

/// The most files that an index may list.
const MAX_SHARDS: usize = 1000;

/// Weights in GGUF, as `cutline model quantize` names them in a folder.
pub(super) const GGUF: &str = "model.gguf";

/// The index of weights in several files, in the order of [`SINGLES`].
pub(super) const INDEXES: [&str; 2] =
    ["model.safetensors.index.json", "pytorch_model.bin.index.json"];

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The files that an index lists, sorted; messages call the index `name`.
///
/// # Errors
/// The index is broken, empty, or names anything but files in its own folder.
pub(super) fn shards(name: &str, index: &[u8]) -> Result<Vec<String>> {
    let remedy = "fetch it again";
    let index = text::without_mark(index).map_err(|why| Error::model(format!("{name} {why}")))?;
    let index: ShardIndex = serde_json::from_slice(index).map_err(|error| {
        Error::model(format!("{name} is not an index of shards ({error}); {remedy}"))
            .with_source(error)
    })?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(Error::model(format!(
            "{name} lists {} shards, not 1 to {MAX_SHARDS}; {remedy}",
            shards.len()
        )));
    }
    // A name with a folder could point anywhere, also to where a download would be written.
    let plain = |shard: &str| {
        is_weights(shard) && !shard.starts_with('.') && !shard.contains(['/', '\\', ':'])
    };
    match shards.iter().find(|shard| !plain(shard)) {
        Some(shard) => Err(Error::model(format!(
            "{name} lists `{shard}`, which is not the name of a file of weights; {remedy}"
        ))),
        None => Ok(shards.into_iter().collect()),
    }
}

/// Whether a file of this name holds weights.
pub(super) fn is_weights(name: &str) -> bool {
    [".safetensors", ".bin"].iter().any(|ending| name.ends_with(ending))
}

/// Refuses invalid JSON; messages call the file `name`.
pub(super) fn check_json(name: &str, bytes: &[u8]) -> Result<()> {
    match serde_json::from_slice::<IgnoredAny>(bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::model(format!(
            "{name} is not valid JSON ({error}); replace it with a complete copy"
        ))
        .with_source(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_listed_once_and_in_order() {
        let index = br#"{"metadata": {}, "weight_map": {
            "c": "model-2.safetensors", "b": "model-1.safetensors", "a": "model-2.safetensors"}}"#;
        let expected = ["model-1.safetensors", "model-2.safetensors"];
        assert_eq!(shards("index", index).unwrap(), expected);
        let marked = [b"\xef\xbb\xbf", &index[..]].concat();
        assert_eq!(shards("index", &marked).unwrap(), expected);
    }

    #[test]
    fn a_shard_cannot_be_in_another_folder() {
        for shard in ["../x.bin", "/etc/x.bin", "a/x.bin", ".x.bin", "a\\\\x.bin", "x.json", ""] {
            let index = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
            assert!(shards("index", index.as_bytes()).is_err(), "{shard}");
        }
        assert!(shards("index", br#"{"weight_map": {}}"#).is_err());
        assert!(shards("index", b"{}").is_err());
        let many: Vec<String> = (0..=MAX_SHARDS).map(|n| format!("\"{n}\":\"{n}.bin\"")).collect();
        let many = format!("{{\"weight_map\": {{{}}}}}", many.join(","));
        assert!(shards("index", many.as_bytes()).unwrap_err().to_string().contains("1001 shards"));
    }
}

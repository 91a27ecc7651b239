//! Batch sizes that were found before, in a file, so that a restart need not measure again.
//!
//! The file is a convenience: whatever is wrong with it, the size is measured.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{BatchSize, Limit};
use crate::engine::EngineInfo;

/// Its name, in the folder for models from the hub.
const NAME: &str = "cutline-batch-sizes.json";

/// Entries that are kept; one for each model, GPU, precision and version.
const MOST: usize = 64;

/// A larger file is not read: [`MOST`] entries take less.
const MOST_BYTES: u64 = 1 << 16;

/// The file, and the entry of one model on one device.
#[derive(Debug)]
pub struct Known {
    path: PathBuf,
    key: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    rows: usize,
    images_per_second: f64,
    limit: Limit,
}

impl Known {
    /// The entry for a model with this digest and images of this size; `None` for a device without a
    /// name. What else may change the result is part of the key: a new version measures anew.
    #[must_use]
    pub fn of(folder: &Path, digest: &str, engine: &EngineInfo, size: [usize; 2]) -> Option<Self> {
        let gpu = engine.gpu.as_ref()?;
        let [width, height] = size;
        let key = format!(
            "{digest} {} {} {width}x{height} {} {} bytes, cutline {}",
            engine.precision,
            engine.kernels,
            gpu.name,
            gpu.memory_bytes,
            env!("CARGO_PKG_VERSION"),
        );
        Some(Self { path: folder.join(NAME), key })
    }

    /// What was found before.
    #[must_use]
    pub fn read(&self) -> Option<BatchSize> {
        let Entry { rows, images_per_second, limit } = self.entries().remove(&self.key)?;
        let sound = rows.is_power_of_two() && rows <= super::LARGEST;
        sound.then_some(BatchSize { rows, images_per_second, limit })
    }

    /// Keeps what was found.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, found: BatchSize) -> io::Result<()> {
        let BatchSize { rows, images_per_second, limit } = found;
        let mut all = self.entries();
        while all.len() >= MOST && !all.contains_key(&self.key) {
            all.pop_first();
        }
        all.insert(self.key.clone(), Entry { rows, images_per_second, limit });
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // Another process may write it at the same time: the last one wins, with a whole file.
        let mut file = NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(&all)?)?;
        file.persist(&self.path).map(drop).map_err(|error| error.error)
    }

    /// Where it is kept.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> BTreeMap<String, Entry> {
        let small = fs::metadata(&self.path).is_ok_and(|file| file.len() <= MOST_BYTES);
        let bytes = if small { fs::read(&self.path).unwrap_or_default() } else { Vec::new() };
        serde_json::from_slice(&bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Family, GpuInfo};

    const FOUND: BatchSize =
        BatchSize { rows: 64, images_per_second: 226.5, limit: Limit::Throughput };

    fn info(precision: &str) -> EngineInfo {
        EngineInfo {
            family: Family::Captioning,
            embedding_size: None,
            parameters: 1,
            precision: precision.to_owned(),
            kernels: "cutline".to_owned(),
            device: "cuda:0".to_owned(),
            gpu: Some(GpuInfo {
                name: "a GPU".to_owned(),
                memory_bytes: 1 << 30,
                compute_capability: "9.0".to_owned(),
            }),
            image_size: 384,
            patch_size: 16,
            vocab_size: 100,
            max_positions: 20,
            threads: 1,
            vision_batch: 1,
        }
    }

    #[test]
    fn a_size_is_known_again_for_the_same_model_and_device_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("not/made/yet");
        let known = |digest: &str, info: &EngineInfo, side| {
            Known::of(&folder, digest, info, [side, side]).unwrap()
        };
        let half = info("f16");
        let this = known("abc", &half, 384);
        assert_eq!(this.read(), None);
        this.write(FOUND).unwrap();
        assert_eq!(this.read(), Some(FOUND));
        let other_gpu = EngineInfo {
            gpu: Some(GpuInfo { memory_bytes: 2 << 30, ..half.gpu.clone().unwrap() }),
            ..half.clone()
        };
        let on_candle = EngineInfo { kernels: "candle".to_owned(), ..half.clone() };
        for other in [
            known("abd", &half, 384),
            known("abc", &half, 512),
            known("abc", &info("bf16"), 384),
            known("abc", &other_gpu, 384),
            known("abc", &on_candle, 384),
        ] {
            assert_eq!(other.read(), None, "{}", other.key);
            other.write(BatchSize { rows: 1, ..FOUND }).unwrap();
        }
        assert_eq!(this.read(), Some(FOUND), "others did not replace it");
        let cpu = EngineInfo { gpu: None, ..half };
        assert!(Known::of(&folder, "abc", &cpu, [384, 384]).is_none());
    }

    #[test]
    fn a_broken_file_is_measured_again_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let known = Known::of(folder.path(), "abc", &info("f16"), [384, 384]).unwrap();
        known.write(FOUND).unwrap();
        let whole = fs::read_to_string(known.path()).unwrap();
        for broken in [
            whole.replace("64", "63"),
            whole.replace("64", "1024"),
            whole.replace("64", "-64"),
            whole.replace("rows", "files"),
            whole[..whole.len() / 2].to_owned(),
            " ".repeat(1 << 20),
        ] {
            fs::write(known.path(), &broken).unwrap();
            assert_eq!(known.read(), None, "{broken}");
        }
        known.write(FOUND).unwrap();
        assert_eq!(known.read(), Some(FOUND));
    }

    #[test]
    fn the_file_does_not_grow_without_end() {
        let folder = tempfile::tempdir().unwrap();
        for n in 0..2 * MOST {
            let digest = format!("{n:064}");
            let known = Known::of(folder.path(), &digest, &info("f16"), [384, 384]).unwrap();
            known.write(FOUND).unwrap();
            assert_eq!(known.read(), Some(FOUND), "{n}");
            assert!(known.entries().len() <= MOST);
        }
    }
}

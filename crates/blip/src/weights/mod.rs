//! The named tensors of a checkpoint in any of its file formats: safetensors (one file or several),
//! PyTorch's zip format, or GGUF.
//!
//! Opening reads and checks the headers only. A tensor's bytes are read on demand, with positioned
//! reads instead of a memory map, and never from a file that has changed since it was opened. Every
//! error is one sentence that names the file, the tensor and the remedy.

mod file;
mod gguf;
mod gguf_write;
mod pickle;
mod safetensors;
mod tensor_type;
mod unpickle;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use self::file::ByteSource;
use self::gguf::Gguf;
use self::pickle::Pickle;
use self::safetensors::SafeTensors;
use cutline_error::{Error, Result};

pub use self::file::CheckedFile;
pub use self::gguf_write::{GgufAbout, GgufTensor};
pub use self::tensor_type::TensorType;

/// The tensors of a checkpoint, by name.
pub struct Weights {
    files: Vec<Box<dyn TensorFile>>,
    /// Name → index in `files`.
    index: BTreeMap<String, usize>,
}

/// One file of tensors.
trait TensorFile: Send + Sync {
    /// The bytes of the file.
    fn source(&self) -> &ByteSource;

    /// The tensors of the file.
    fn entries(&self) -> &BTreeMap<String, TensorEntry>;

    /// The tensor as it is stored, or dequantised to F32; its type was checked before.
    fn read(&self, name: &str, device: &Device) -> Result<Tensor>;

    /// The tensor in its quantised form.
    fn read_quantized(&self, name: &str, _device: &Device) -> Result<QTensor> {
        Err(Error::internal(format!("{}: `{name}` is not quantised", self.source().name())))
    }
}

/// One tensor in the header of a file.
#[derive(Debug, Clone)]
struct TensorEntry {
    shape: Vec<usize>,
    format: TensorFormat,
    /// Identifies the memory that tied tensors share; `None` if the format has no sharing.
    storage: Option<String>,
}

impl TensorEntry {
    /// Number of elements. An overflow was refused when the file was opened.
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How a tensor's numbers are stored.
#[derive(Debug, Clone)]
enum TensorFormat {
    /// Floating point that candle can convert.
    Float(DType),
    /// GGML's blocks.
    Quantized(GgmlDType),
    /// Anything else, such as the `position_ids` of old checkpoints; reading it is an error.
    Other(String),
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<&str> = self.files.iter().map(|file| file.source().name()).collect();
        f.debug_struct("Weights")
            .field("files", &files)
            .field("tensors", &self.index.len())
            .finish()
    }
}

impl Weights {
    /// A checkpoint in memory, such as the embedded model; messages call it `name`.
    ///
    /// # Errors
    /// The bytes are not a complete safetensors file.
    pub fn from_safetensors_bytes(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self> {
        Self::new(vec![Box::new(SafeTensors::from_bytes(name, bytes)?)])
    }

    /// A checkpoint of one or several files. The extension gives the format: `.safetensors`,
    /// `.bin`, `.pt` or `.pth`, `.gguf`.
    ///
    /// # Errors
    /// A file is missing, truncated, of another format, or being written.
    pub fn from_files(paths: &[PathBuf]) -> Result<Self> {
        let files = paths.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
        Self::new(files)
    }

    fn new(files: Vec<Box<dyn TensorFile>>) -> Result<Self> {
        let mut index = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.entries().keys() {
                if let Some(other) = index.insert(name.clone(), number) {
                    return Err(Error::model(format!(
                        "{} and {} both hold the tensor `{name}`; they are not shards of one \
                         checkpoint: fetch all of them again from one revision",
                        files[other].source().name(),
                        file.source().name(),
                    )));
                }
            }
        }
        Ok(Self { files, index })
    }

    /// Whether the checkpoint has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The shape of the tensor; `None` if there is no such tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|(_, entry)| entry.shape.as_slice())
    }

    /// Whether the tensor exists and can be read as weights, so it holds no integers.
    #[must_use]
    pub fn is_float(&self, name: &str) -> bool {
        self.find(name).is_some_and(|(_, entry)| !matches!(entry.format, TensorFormat::Other(_)))
    }

    /// Size of all files together, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.source().length()).sum()
    }

    /// Whether any tensor is stored in quantised blocks (GGUF).
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        self.files
            .iter()
            .flat_map(|file| file.entries().values())
            .any(|entry| matches!(entry.format, TensorFormat::Quantized(_)))
    }

    /// Whether all quantised tensors are Q8_0; `None` if none is quantised.
    #[must_use]
    pub fn only_q8_0(&self) -> Option<bool> {
        let kinds = self.files.iter().flat_map(|file| file.entries().values());
        kinds
            .filter_map(|entry| match entry.format {
                TensorFormat::Quantized(kind) => Some(kind == GgmlDType::Q8_0),
                _ => None,
            })
            .reduce(|all, one| all && one)
    }

    /// Elements of all floating-point tensors. Tensors that share memory in a PyTorch file count
    /// once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let mut seen = HashSet::new();
        self.files
            .iter()
            .flat_map(|file| file.entries().values())
            .filter(|entry| !matches!(entry.format, TensorFormat::Other(_)))
            .filter(|entry| entry.storage.as_ref().is_none_or(|storage| seen.insert(storage)))
            .map(|entry| entry.elements() as u64)
            .sum()
    }

    /// The tensor in `dtype` on `device`. F64, F32, F16 and BF16 are converted; quantised tensors
    /// are dequantised.
    ///
    /// # Errors
    /// There is no such tensor, its shape is not `shape`, it holds no floating-point numbers, or
    /// its file cannot be read or has changed since it was opened.
    pub fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let (file, entry) = self.checked(name, shape)?;
        if let TensorFormat::Other(stored) = &entry.format {
            return Err(Error::model(format!(
                "{}: tensor `{name}` is stored as {stored}, which cannot be used as weights; save \
                 the model as float32, float16 or bfloat16",
                file.source().name(),
            )));
        }
        file.read(name, device)?.to_dtype(dtype).map_err(|e| broken(file.source().name(), name, e))
    }

    /// A two-dimensional weight in the quantised form of the file; `None` if it is not quantised.
    ///
    /// # Errors
    /// As for [`tensor`](Self::tensor), and if the device cannot hold this kind of blocks.
    pub fn quantized(
        &self,
        name: &str,
        shape: &[usize],
        device: &Device,
    ) -> Result<Option<Arc<QTensor>>> {
        let (file, entry) = self.checked(name, shape)?;
        match entry.format {
            TensorFormat::Quantized(_) if shape.len() == 2 => {
                file.read_quantized(name, device).map(|tensor| Some(Arc::new(tensor)))
            }
            _ => Ok(None),
        }
    }

    /// `blake3:` and the hexadecimal hash of the bytes of all files, in the order in which they
    /// were given. For a single file this is what `b3sum` prints.
    ///
    /// Reads every byte; rayon's threads share the hashing.
    ///
    /// # Errors
    /// A file cannot be read or has changed since it was opened.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            file.source().hash(&mut hasher)?;
        }
        Ok(format!("blake3:{}", hasher.finalize().to_hex()))
    }

    fn find(&self, name: &str) -> Option<(&dyn TensorFile, &TensorEntry)> {
        let file = self.files.get(*self.index.get(name)?)?;
        Some((file.as_ref(), file.entries().get(name)?))
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<(&dyn TensorFile, &TensorEntry)> {
        let (file, entry) = self.find(name).ok_or_else(|| {
            Error::model(format!(
                "{}: there is no tensor `{name}`; the checkpoint is incomplete or not of the \
                 architecture that config.json describes: fetch both again from one revision",
                self.files_in_words(),
            ))
        })?;
        if entry.shape != shape {
            return Err(Error::model(format!(
                "{}: tensor `{name}` has the shape {:?}, but config.json asks for {shape:?}; the two \
                 do not belong together: fetch both again from one revision",
                file.source().name(),
                entry.shape,
            )));
        }
        Ok((file, entry))
    }

    /// The files, for messages.
    pub(crate) fn files_in_words(&self) -> String {
        match self.files.as_slice() {
            [] => "no file".into(),
            [file] => file.source().name().into(),
            [first, rest @ ..] => format!("{} and {} more", first.source().name(), rest.len()),
        }
    }
}

fn open(path: &Path) -> Result<Box<dyn TensorFile>> {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    Ok(match ending.as_deref() {
        Some("safetensors") => Box::new(SafeTensors::open(path)?),
        Some("bin" | "pt" | "pth") => Box::new(Pickle::open(path)?),
        Some("gguf") => Box::new(Gguf::open(path)?),
        _ => {
            return Err(Error::model(format!(
                "{}: weights must be .safetensors, .bin or .gguf files; convert the model to one of these",
                path.display(),
            )));
        }
    })
}

/// The error for a tensor whose bytes candle does not accept.
fn broken(
    file: &str,
    tensor: &str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    let error = error.into();
    Error::model(format!(
        "{file}: tensor `{tensor}` cannot be read ({}); replace the file with a complete copy",
        reason(error.as_ref()),
    ))
    .with_source(error)
}

/// Runs a parser that may panic on a broken file: candle's reader of GGUF uses numbers from the file as
/// divisors.
fn catch_panics<T, E: std::error::Error + Send + Sync + 'static>(
    file: &str,
    kind: &str,
    parse: impl FnOnce() -> std::result::Result<T, E>,
) -> Result<T> {
    let remedy = "replace it with a complete copy";
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(parse)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let reason = reason(&error);
            Err(Error::model(format!("{file} is not a complete {kind} ({reason}); {remedy}"))
                .with_source(error))
        }
        Err(_) => Err(Error::model(format!("{file} is not a complete {kind}; {remedy}"))),
    }
}

/// The first line of an error: candle's have a stack trace if `RUST_BACKTRACE` is set.
fn reason(error: &dyn std::error::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

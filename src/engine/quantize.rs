//! Writes a model to a GGUF file, with the small files that it needs in the same folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::layout::GGUF;
use super::source::ModelFiles;
use cutline_blip::BlipConfig;
use cutline_blip::quantize::QuantizationPlan;
pub use cutline_blip::weights::TensorType;
use cutline_blip::weights::{GgufAbout, GgufTensor};
use cutline_error::{Error, ErrorKind, Result};

/// A model that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantized {
    /// The GGUF file.
    pub path: PathBuf,
    /// Size in bytes of the original weights.
    pub bytes_before: u64,
    /// Size in bytes of the GGUF file.
    pub bytes_after: u64,
    /// How the tensors were written.
    pub plan: QuantizationPlan,
}

/// Where a quantised model is written: a `.gguf` file, or `model.gguf` in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    folder: PathBuf,
    file: PathBuf,
    overwrite: bool,
}

impl Destination {
    /// A path that ends in `.gguf` is the file, any other path is the folder. Without `overwrite`,
    /// it is an error if an existing file would change.
    #[must_use]
    pub fn new(out: &Path, overwrite: bool) -> Self {
        let ending = out.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
            let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).into();
            return Self { folder, file: out.into(), overwrite };
        }
        Self { folder: out.into(), file: out.join(GGUF), overwrite }
    }

    /// Refuses an obstacle before any work is done.
    fn check(&self, files: &ModelFiles) -> Result<()> {
        if self.folder.exists() && !self.folder.is_dir() {
            return Err(refused(&self.folder, "is a file; name a folder or a .gguf file"));
        }
        if self.file.is_dir() {
            return Err(refused(&self.file, "is a folder; name a file that does not exist yet"));
        }
        if is_same(&self.file, Path::new(&files.source)) {
            return Err(refused(
                &self.file,
                "is the model that is being read; write to another file",
            ));
        }
        if self.overwrite {
            return Ok(());
        }
        if self.file.exists() {
            return Err(refused(&self.file, "exists already; choose another, or add --force"));
        }
        match self.changes(files).find(|(path, _)| path.exists()) {
            None => Ok(()),
            Some((path, _)) => Err(refused(
                &path,
                "exists already and belongs to another model; choose another folder, or add --force",
            )),
        }
    }

    /// The small files that are missing in the folder or have another content there.
    fn changes<'a>(
        &self,
        files: &'a ModelFiles,
    ) -> impl Iterator<Item = (PathBuf, &'a [u8])> + use<'a> {
        let folder = self.folder.clone();
        files
            .small_files()
            .into_iter()
            .map(move |(name, bytes)| (folder.join(name), bytes))
            .filter(|(path, bytes)| fs::read(path).ok().as_deref() != Some(*bytes))
    }
}

/// Writes the model with its matrices in `kind`, or in another type if their rows do not fill its
/// blocks.
///
/// The GGUF file gets its name once it is complete, after the small files. `progress` receives the
/// share that is written, 0 to 1.
///
/// # Errors
/// [`Io`](ErrorKind::Io) for a file that exists already or cannot be written;
/// [`Model`](ErrorKind::Model) for a model that is not a BLIP captioner, is broken, or is quantised
/// already.
pub fn quantize(
    files: &ModelFiles,
    kind: TensorType,
    destination: &Destination,
    progress: &mut dyn FnMut(f32),
) -> Result<Quantized> {
    let config = BlipConfig::from_json(&files.config)?;
    let plan = QuantizationPlan::new(&config, &files.weights, kind)?;
    destination.check(files)?;
    let folder = &destination.folder;
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, error))?;

    let mut file = Unfinished::create(&destination.file)?;
    let expected = expected_bytes(files, &plan.tensors);
    let about =
        GgufAbout { architecture: "blip", name: &files.id, license: files.license.as_deref() };
    files.weights.write_gguf(&about, &plan.tensors, &mut |bytes| {
        file.write(bytes)?;
        progress((file.written as f32 / expected as f32).min(1.0));
        Ok(())
    })?;
    for (path, bytes) in destination.changes(files) {
        let mut small = Unfinished::create(&path)?;
        small.write(bytes)?;
        small.finish()?;
    }
    Ok(Quantized {
        path: destination.file.clone(),
        bytes_before: files.weights.file_bytes(),
        bytes_after: file.finish()?,
        plan,
    })
}

/// The approximate size of the file in bytes, without its header.
fn expected_bytes(files: &ModelFiles, tensors: &[GgufTensor]) -> u64 {
    let bytes = |tensor: &GgufTensor| {
        let shape = files.weights.shape(&tensor.source).unwrap_or_default();
        tensor.kind.bytes(shape.iter().product()) as u64
    };
    tensors.iter().map(bytes).sum::<u64>().max(1)
}

/// A file that is written under a temporary name and renamed at the end; dropped before that, it is
/// deleted. [`source`](super::source) recognises the temporary name and refuses to read the model.
struct Unfinished {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    written: u64,
}

impl Unfinished {
    fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let part = path.with_file_name(format!("{name}.tmp"));
        match OpenOptions::new().write(true).create_new(true).open(&part) {
            Ok(file) => {
                let file = BufWriter::new(file);
                Ok(Self { path: path.into(), part, file, written: 0 })
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(refused(
                &part,
                "exists: wait until the program that writes it has finished, or delete it if that \
                 program was interrupted",
            )),
            Err(error) => Err(unwritable(path, error)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| unwritable(&self.path, error))
    }

    /// Gives the file its name and returns its length. The content reaches the disk before the name
    /// does, so a crash in between leaves nothing that looks complete.
    fn finish(mut self) -> Result<u64> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.part, &self.path))
            .map_err(|error| unwritable(&self.path, error))?;
        Ok(self.written)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It does not exist any more if it was renamed.
        let _ = fs::remove_file(&self.part);
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Io, format!("{} {why}", path.display()))
}

fn unwritable(path: &Path, error: io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull => "free some space, or choose another disk",
        io::ErrorKind::PermissionDenied => "allow this user to write there, or choose another path",
        _ => "check the path and the disk",
    };
    let what = path.display();
    Error::new(ErrorKind::Io, format!("{what} cannot be written ({error}); {remedy}"))
        .with_source(error)
}

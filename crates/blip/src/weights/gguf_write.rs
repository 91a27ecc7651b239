//! Writes GGUF, version 3, as in its specification
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): a header, then the tensors'
//! bytes. candle's writer needs all tensors in memory; this one holds a single tensor at a time.

use std::thread;

use candle_core::quantized::QTensor;
use candle_core::{self as candle, DType, Device, Tensor};
use half::f16;

use super::{TensorType, Weights};
use cutline_error::{Error, Result};

/// Tensors start at multiples of this, the default of the format.
const ALIGNMENT: usize = 32;

/// The most dimensions that readers of the format accept.
const MAX_DIMENSIONS: usize = 4;

/// The version of the block formats, for `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// One tensor of a file that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// The tensor of the checkpoint to take it from.
    pub source: String,
    /// The type to write.
    pub kind: TensorType,
}

/// Metadata of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufAbout<'a> {
    /// `general.architecture`, in lower-case letters and digits.
    pub architecture: &'a str,
    /// `general.name`.
    pub name: &'a str,
    /// `general.license.name`, if it is known.
    pub license: Option<&'a str>,
}

enum Value<'a> {
    Number(u32),
    Text(&'a str),
}

impl Weights {
    /// Writes a GGUF file of `tensors`, in their order, piece by piece into `sink`.
    ///
    /// # Errors
    /// A tensor is missing, unreadable, or has values that its type cannot represent; or an error
    /// of `sink`.
    pub fn write_gguf(
        &self,
        about: &GgufAbout<'_>,
        tensors: &[GgufTensor],
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let shapes = tensors.iter().map(|tensor| self.written_shape(tensor));
        let shapes = shapes.collect::<Result<Vec<_>>>()?;
        sink(&header(about, tensors, &shapes))?;
        for (tensor, shape) in tensors.iter().zip(&shapes) {
            let mut bytes = self.encode(tensor, shape)?;
            pad(&mut bytes);
            sink(&bytes)?;
        }
        Ok(())
    }

    fn written_shape(&self, tensor: &GgufTensor) -> Result<Vec<usize>> {
        let shape = self.shape(&tensor.source).ok_or_else(|| {
            Error::internal(format!("the planned tensor `{}` does not exist", tensor.source))
        })?;
        if shape.len() > MAX_DIMENSIONS {
            return Err(Error::model(format!(
                "{}: tensor `{}` has {} dimensions, but GGUF allows {MAX_DIMENSIONS}; no BLIP \
                 captioner has such a tensor, so choose another model",
                self.files_in_words(),
                tensor.source,
                shape.len(),
            )));
        }
        Ok(shape.to_vec())
    }

    /// The bytes of one tensor.
    fn encode(&self, tensor: &GgufTensor, shape: &[usize]) -> Result<Vec<u8>> {
        let failed = |error: candle::Error| {
            Error::internal(format!("`{}` cannot be quantised: {error}", tensor.name))
                .with_source(error)
        };
        let source = self.tensor(&tensor.source, shape, DType::F32, &Device::Cpu)?;
        let values: Vec<f32> = source.flatten_all().and_then(|t| t.to_vec1()).map_err(failed)?;
        drop(source);
        self.check_range(tensor, &values)?;
        match tensor.kind {
            TensorType::F32 => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            TensorType::F16 => {
                Ok(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect())
            }
            kind => quantize(&values, shape.last().copied().unwrap_or(1), kind).map_err(failed),
        }
    }

    /// Refuses values that cannot be represented: infinities and NaN would spoil the scale of their
    /// whole block.
    fn check_range(&self, tensor: &GgufTensor, values: &[f32]) -> Result<()> {
        let most = match tensor.kind {
            TensorType::F32 => f32::MAX,
            _ => f16::MAX.to_f32(),
        };
        match values.iter().find(|value| value.is_nan() || value.abs() > most) {
            None => Ok(()),
            Some(value) if value.is_finite() => Err(Error::model(format!(
                "{}: tensor `{}` holds {value}, but {} is safe only up to {most}; choose \
                 --type f32",
                self.files_in_words(),
                tensor.source,
                tensor.kind,
            ))),
            Some(value) => Err(Error::model(format!(
                "{}: tensor `{}` holds {value}, which is not a weight; fetch the checkpoint again",
                self.files_in_words(),
                tensor.source,
            ))),
        }
    }
}

/// Quantises rows of `width` numbers. No block spans two rows, so the rows are divided among
/// threads and the result does not depend on their number.
fn quantize(values: &[f32], width: usize, kind: TensorType) -> candle::Result<Vec<u8>> {
    let rows = values.len() / width.max(1);
    let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = rows.div_ceil(processors).max(1) * width.max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = values
            .chunks(share)
            .map(|part| {
                scope.spawn(move || {
                    let shape = (part.len() / width, width);
                    let part = Tensor::from_slice(part, shape, &Device::Cpu)?;
                    QTensor::quantize(&part, kind.ggml())?.data().map(|bytes| bytes.into_owned())
                })
            })
            .collect();
        let mut bytes = Vec::with_capacity(kind.bytes(values.len()));
        for worker in workers {
            let part = worker.join().map_err(|_| candle::Error::Msg("a thread failed".into()))?;
            bytes.extend(part?);
        }
        Ok(bytes)
    })
}

/// Everything before the tensors' bytes, padded.
fn header(about: &GgufAbout<'_>, tensors: &[GgufTensor], shapes: &[Vec<usize>]) -> Vec<u8> {
    let metadata = metadata(about, tensors, shapes);
    let mut out = b"GGUF".to_vec();
    number(&mut out, 3);
    length(&mut out, tensors.len());
    length(&mut out, metadata.len());
    for (key, value) in metadata {
        text(&mut out, key);
        match value {
            Value::Number(value) => {
                number(&mut out, 4);
                number(&mut out, value);
            }
            Value::Text(value) => {
                number(&mut out, 8);
                text(&mut out, value);
            }
        }
    }
    let mut offset = 0;
    for (tensor, shape) in tensors.iter().zip(shapes) {
        text(&mut out, &tensor.name);
        number(&mut out, shape.len() as u32);
        // The innermost dimension comes first here and last in PyTorch.
        shape.iter().rev().for_each(|&dimension| length(&mut out, dimension));
        number(&mut out, tensor.kind.id());
        length(&mut out, offset);
        offset += tensor.kind.bytes(shape.iter().product()).next_multiple_of(ALIGNMENT);
    }
    pad(&mut out);
    out
}

fn metadata<'a>(
    about: &GgufAbout<'a>,
    tensors: &[GgufTensor],
    shapes: &[Vec<usize>],
) -> Vec<(&'static str, Value<'a>)> {
    let numbers = |kind: TensorType| {
        let of_kind = tensors.iter().zip(shapes).filter(|(tensor, _)| tensor.kind == kind);
        of_kind.map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>()
    };
    let most = TensorType::ALL.into_iter().max_by_key(|&kind| numbers(kind));
    let mut metadata = vec![
        ("general.architecture", Value::Text(about.architecture)),
        ("general.name", Value::Text(about.name)),
        ("general.file_type", Value::Number(most.unwrap_or(TensorType::F32).file_type())),
    ];
    if tensors.iter().any(|tensor| tensor.kind.is_quantized()) {
        metadata.push(("general.quantization_version", Value::Number(QUANTIZATION_VERSION)));
    }
    metadata.extend(about.license.map(|license| ("general.license.name", Value::Text(license))));
    metadata
}

fn number(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn length(out: &mut Vec<u8>, value: usize) {
    out.extend((value as u64).to_le_bytes());
}

fn text(out: &mut Vec<u8>, value: &str) {
    length(out, value.len());
    out.extend(value.as_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let values: Vec<f32> = (0..7 * 256).map(|i| (i as f32 * 0.7).sin()).collect();
        for kind in TensorType::ALL.into_iter().filter(|kind| kind.is_quantized()) {
            let whole = Tensor::from_slice(&values, (7, 256), &Device::Cpu).unwrap();
            let whole = QTensor::quantize(&whole, kind.ggml()).unwrap();
            assert_eq!(quantize(&values, 256, kind).unwrap(), *whole.data().unwrap(), "{kind}");
            assert_eq!(whole.storage_size_in_bytes(), kind.bytes(values.len()), "{kind}");
        }
    }
}

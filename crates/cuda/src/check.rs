//! Tries every operation on a device before a model relies on it.
//!
//! A kernel that was compiled for a GPU may still be wrong there: another architecture, driver or
//! library than those it was tried on. The check runs each operation on small numbers that are the same
//! in every run, with the widths of the model, and compares with the reference. An operation that fails
//! is computed by candle instead.

use std::cmp::Ordering::{Equal, Less};
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Error, Result as Candle, Tensor};

use crate::{Arrangement, Operation, Operations};

/// Rows of the operands: more than the tiles of the kernels, and not a multiple of them.
const ROWS: usize = 70;

/// The widths of a stack of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    /// Attention heads.
    pub heads: usize,
    /// Width of the activations.
    pub hidden: usize,
    /// Width inside the feed-forward.
    pub inner: usize,
}

/// What a check found.
#[derive(Debug)]
pub struct Checked {
    /// The operations that are right on the device; candle computes the others.
    pub operations: Operations,
    /// The others.
    pub rejected: Vec<Rejected>,
}

/// An operation that must not be used on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The operation.
    pub operation: Operation,
    /// The error, or how far its results are from the reference.
    pub reason: String,
}

/// An operation after which the device refuses all work of this process.
#[derive(Debug)]
pub struct Lost {
    /// The operation that was tried last, and what it did.
    pub rejected: Rejected,
    /// What the device says.
    pub error: Error,
}

/// Tries every operation in `dtype` and in f32, which parts of a model always use, for an encoder of
/// images and a decoder that attends to them.
///
/// # Errors
/// The device is lost.
pub fn check(
    device: &Device,
    dtype: DType,
    [encoder, decoder]: [Widths; 2],
) -> Result<Checked, Lost> {
    let mut dtypes = vec![dtype, DType::F32];
    dtypes.dedup();
    let one = |operation| {
        dtypes.iter().try_for_each(|dtype| {
            let trial = |device: &Device| {
                trial(operation, Operations::CUTLINE, [encoder, decoder], *dtype, device)
            };
            let expected = trial(&Device::Cpu).map_err(|e| one_line(&e))?;
            let found = catch_unwind(AssertUnwindSafe(|| trial(device)))
                .map_err(|_| "it panicked".to_owned())?
                .map_err(|e| one_line(&e))?;
            compare(&found, &expected, *dtype)
        })
    };
    choose(one, || alive(device))
}

/// Keeps the operations for which `one` finds no fault, as long as the device is `alive`.
fn choose(
    one: impl Fn(Operation) -> Result<(), String>,
    alive: impl Fn() -> Candle<()>,
) -> Result<Checked, Lost> {
    let mut checked = Checked { operations: Operations::CUTLINE, rejected: Vec::new() };
    for operation in Operation::ALL {
        let Err(reason) = one(operation) else { continue };
        let rejected = Rejected { operation, reason };
        if let Err(error) = alive() {
            return Err(Lost { rejected, error });
        }
        checked.operations = checked.operations.without(operation);
        checked.rejected.push(rejected);
    }
    Ok(checked)
}

/// Whether candle can still compute on the device. After some errors all later calls of a process fail.
fn alive(device: &Device) -> Candle<()> {
    let ones = Tensor::ones(4, DType::F32, device)?;
    let sum = (&ones + &ones)?.to_vec1::<f32>()?;
    if sum == [2.0; 4] {
        return Ok(());
    }
    candle_core::bail!("1 + 1 is {sum:?}")
}

fn one_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Says how the results differ by more than rounding. Each is measured by the greatest number that is
/// expected.
fn compare(found: &[Tensor], expected: &[Tensor], dtype: DType) -> Result<(), String> {
    let tolerance = match dtype {
        DType::F16 => 5e-3,
        DType::BF16 => 4e-2,
        _ => 1e-4,
    };
    for (found, expected) in found.iter().zip(expected) {
        if found.dims() != expected.dims() {
            return Err(format!("its result is {:?}, not {:?}", found.dims(), expected.dims()));
        }
        let values = |x: &Tensor| x.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
        let read = values(found).and_then(|found| Ok((found, values(expected)?)));
        let (found, expected) = read.map_err(|e| one_line(&e))?;
        let scale = expected.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        let allowed = tolerance * scale;
        // A NaN is within no bound.
        let wrong = |(found, expected): &(&f32, &f32)| {
            !matches!((*found - *expected).abs().partial_cmp(&allowed), Some(Less | Equal))
        };
        let all = found.len();
        let wrong: Vec<_> = found.iter().zip(&expected).filter(wrong).collect();
        if let Some((found, expected)) = wrong.first() {
            let (count, dtype) = (wrong.len(), dtype.as_str());
            return Err(format!(
                "in {dtype}, {count} of {all} numbers are wrong; one is {found} and should be {expected}"
            ));
        }
    }
    Ok(())
}

/// Runs an operation in `dtype` on operands that are the same on every device. The results are on the
/// CPU.
pub(crate) fn trial(
    operation: Operation,
    with: Operations,
    [encoder, decoder]: [Widths; 2],
    dtype: DType,
    device: &Device,
) -> Candle<Vec<Tensor>> {
    let mut seed = operation as u64;
    let mut numbers = |shape: &[usize], size: f32| {
        seed += 16;
        numbers(seed, shape, size)?.to_dtype(dtype)?.to_device(device)
    };
    let mut stacks = vec![encoder, decoder];
    stacks.dedup();
    let mut results = Vec::new();
    for Widths { heads, hidden, inner } in stacks {
        let width = hidden / heads.max(1);
        match operation {
            Operation::Linear => {
                for (rows, from, to) in [(1, hidden, 3 * hidden), (ROWS, hidden, inner)] {
                    let (x, w) = (numbers(&[rows, from], 0.5)?, numbers(&[to, from], 0.1)?);
                    results.push(with.linear(&x, &w, &numbers(&[to], 1.0)?)?);
                }
            }
            Operation::AddLinear => {
                for (rows, from) in [(1, hidden), (ROWS, inner)] {
                    let (x, w) = (numbers(&[rows, from], 0.5)?, numbers(&[hidden, from], 0.1)?);
                    let (b, y) = (numbers(&[hidden], 1.0)?, numbers(&[rows, hidden], 1.0)?);
                    results.push(with.add_linear(y, &x, &w, &b)?);
                }
            }
            Operation::Attention => {
                let qkv = numbers(&[2, ROWS, 3, heads, width], 2.0)?;
                results.push(with.attention(&qkv, (width as f32).powf(-0.5))?);
            }
            Operation::LayerNorm => {
                let (x, w) = (numbers(&[7, hidden], 2.0)?, numbers(&[hidden], 1.0)?);
                results.push(with.layer_norm(&x, &w, &numbers(&[hidden], 1.0)?, 1e-5)?);
            }
            Operation::Gelu => results.push(with.gelu(numbers(&[3, 1001], 4.0)?)?),
            Operation::Product => results.extend(products(with, heads, width, &mut numbers)?),
            Operation::Softmax => {
                let scores = numbers(&[2, 5, 40], 8.0)?.to_dtype(DType::F32)?.narrow(2, 0, 37)?;
                results.push(with.softmax(&scores, dtype)?);
            }
            Operation::StepStore => {
                let cache = numbers(&[4, heads, 2, 40, width], 1.0)?;
                with.step_store(
                    &cache,
                    &numbers(&[4, heads, 3, width], 1.0)?,
                    &positions(device)?,
                )?;
                results.push(cache);
            }
            Operation::StepAttend => {
                let cache = numbers(&[4, heads, 2, 40, width], 1.0)?;
                let qkv = numbers(&[4, heads, 3, width], 1.0)?;
                results.push(with.step_attend(&cache, &qkv, &positions(device)?)?);
            }
            Operation::Best => results.extend(best(with, device)?),
        }
    }
    results.iter().map(|x| x.to_device(&Device::Cpu)?.to_dtype(DType::F32)).collect()
}

/// The products of cross-attention: queries inside rows, and rows of probabilities that are further apart
/// than they are long.
fn products(
    with: Operations,
    heads: usize,
    width: usize,
    numbers: &mut impl FnMut(&[usize], f32) -> Candle<Tensor>,
) -> Candle<Vec<Tensor>> {
    use Arrangement::{BatchFirst, BatchInside};
    let (images, rows, tokens, from) = (3, 2, 37, 2 * width);
    let q = numbers(&[images * rows, heads, width], 0.5)?;
    let keys = numbers(&[heads, width, from], 0.5)?;
    let wide = numbers(&[images, rows * heads, from], 0.5)?;
    let states = numbers(&[images, tokens, from], 0.5)?;
    let p = numbers(&[images, rows * heads, 40], 0.5)?.narrow(2, 0, tokens)?;
    let read = numbers(&[images * rows, heads, from], 0.5)?;
    let dtype = q.dtype();
    Ok(vec![
        with.product(&q.transpose(0, 1)?, &keys, dtype, BatchInside)?,
        with.product(&wide, &states.transpose(1, 2)?, DType::F32, BatchFirst)?,
        with.product(&p, &states, dtype, BatchFirst)?,
        with.product(&read.transpose(0, 1)?, &keys.transpose(1, 2)?, dtype, BatchInside)?,
    ])
}

/// The greatest of a thousand numbers, of which none are equal; and the marks of rows that are and are
/// not finite, as 0 and 1.
fn best(with: Operations, device: &Device) -> Candle<Vec<Tensor>> {
    const COUNT: usize = 5;
    let x = numbers(1, &[4, 1000], 9.0)?.to_device(device)?;
    let found = with.best(&x, COUNT)?;
    let mut rows = vec![vec![0.5_f32; 100]; 3];
    rows[1][99] = f32::NAN;
    let marks = with.best(&Tensor::new(rows, device)?, 2)?.narrow(1, 5, 1)?;
    Ok(vec![
        found.narrow(1, 0, COUNT)?,
        found.narrow(1, COUNT, COUNT)?,
        found.narrow(1, 2 * COUNT, 1)?,
        marks.ne(&marks)?,
    ])
}

/// Of four rows: in the middle, none, the last, the first.
fn positions(device: &Device) -> Candle<Tensor> {
    Tensor::new(&[5_u32, u32::MAX, 39, 0], device)
}

/// Numbers within ±`size`, the same in every run.
pub(crate) fn numbers(seed: u64, shape: &[usize], size: f32) -> Candle<Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: [Widths; 2] =
        [Widths { heads: 3, hidden: 96, inner: 200 }, Widths { heads: 2, hidden: 128, inner: 256 }];

    #[test]
    fn candles_operations_compute_the_same() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for operation in Operation::ALL {
                let run = |with| trial(operation, with, WIDTHS, dtype, &Device::Cpu).unwrap();
                let (ours, candles) = (run(Operations::CUTLINE), run(Operations::CANDLE));
                assert!(!ours.is_empty());
                assert_eq!(compare(&candles, &ours, dtype), Ok(()), "{operation} in {dtype:?}");
                // The comparison sees a single number that is wrong.
                let mut values: Vec<f32> = ours[0].flatten_all().unwrap().to_vec1().unwrap();
                *values.last_mut().unwrap() += 0.2 * values.iter().fold(0.0, |a, b| b.abs().max(a));
                let wrong = Tensor::from_vec(values, ours[0].dims(), &Device::Cpu).unwrap();
                let complaint = compare(&[wrong], &ours[..1], dtype).unwrap_err();
                assert!(complaint.contains("1 of"), "{operation} in {dtype:?}: {complaint}");
            }
        }
    }

    #[test]
    fn a_device_that_computes_correctly_keeps_all_operations() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let checked = check(&Device::Cpu, dtype, WIDTHS).unwrap();
            assert_eq!((checked.operations, checked.rejected), (Operations::CUTLINE, vec![]));
        }
    }

    #[test]
    fn an_operation_that_fails_is_candles() {
        let faulty = [Operation::Attention, Operation::Gelu];
        let one = |operation| match faulty.contains(&operation) {
            true => Err("wrong".to_owned()),
            false => Ok(()),
        };
        let checked = choose(one, || alive(&Device::Cpu)).unwrap();
        let rejected: Vec<Operation> = checked.rejected.iter().map(|r| r.operation).collect();
        assert_eq!(rejected, faulty);
        for operation in Operation::ALL {
            assert_eq!(checked.operations.has(operation), !faulty.contains(&operation));
        }
        assert_eq!(checked.operations.to_string(), "cutline without attention, gelu");
    }

    #[test]
    fn a_device_that_is_lost_ends_the_check() {
        let one = |operation| match operation {
            Operation::LayerNorm => Err("an illegal address".to_owned()),
            _ => Ok(()),
        };
        let lost = choose(one, || candle_core::bail!("no further work")).unwrap_err();
        assert_eq!(lost.rejected.operation, Operation::LayerNorm);
        assert!(lost.error.to_string().contains("no further work"));
    }

    #[test]
    fn results_that_are_no_numbers_or_of_another_shape_are_wrong() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let expected = [tensor(&[1.0, 2.0])];
        assert_eq!(compare(&[tensor(&[1.0, 2.000_1])], &expected, DType::F32), Ok(()));
        assert!(compare(&[tensor(&[1.0, 2.001])], &expected, DType::F32).is_err());
        assert!(compare(&[tensor(&[1.0, f32::NAN])], &expected, DType::BF16).is_err());
        assert!(compare(&[tensor(&[1.0])], &expected, DType::F32).is_err());
    }

    #[test]
    fn a_choice_says_what_computes() {
        assert_eq!(Operations::CUTLINE.to_string(), "cutline");
        assert_eq!(Operations::CANDLE.to_string(), "candle");
        let all = Operation::ALL.into_iter().fold(Operations::CUTLINE, Operations::without);
        assert_eq!(all, Operations::CANDLE);
    }
}

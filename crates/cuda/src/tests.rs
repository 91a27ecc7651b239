//! The references against candle's own operations, and the kernels against the references where there
//! is a GPU.

use candle_core::{D, DType, Device, Result, Tensor};

use super::*;

/// The CPU, and a GPU if there is one.
fn devices() -> Vec<Device> {
    let gpu = cfg!(feature = "cuda")
        .then(|| std::panic::catch_unwind(|| Device::new_cuda_with_stream(0).ok()).ok().flatten());
    match gpu.flatten() {
        Some(gpu) => vec![Device::Cpu, gpu],
        None => {
            println!("there is no GPU here: the references are tested, the kernels are not");
            vec![Device::Cpu]
        }
    }
}

const TYPES: [(DType, f32); 3] = [(DType::F32, 1e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)];

/// Numbers within ±`size`, the same in every run, that `dtype` represents exactly.
fn numbers(seed: u64, shape: &[usize], size: f32, dtype: DType) -> Tensor {
    crate::check::numbers(seed, shape, size).unwrap().to_dtype(dtype).unwrap()
}

/// The largest difference, in f32 on the CPU.
fn difference(ours: &Tensor, expected: &Tensor) -> f32 {
    let full = |x: &Tensor| x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    assert_eq!(ours.dims(), expected.dims());
    let all = (full(ours) - full(expected)).unwrap().abs().unwrap().flatten_all().unwrap();
    // A NaN is greater than everything.
    let values: Vec<f32> = all.to_vec1().unwrap();
    values.into_iter().fold(0.0, |worst, x| if x <= worst { worst } else { x })
}

/// Runs `ours` on every device and in every type with these operands, and compares with `expected` in
/// f32 on the CPU.
fn compare(
    what: &str,
    operands: &[(&[usize], f32)],
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    expected: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    for device in devices() {
        for (dtype, tolerance) in TYPES {
            let seeded = operands.iter().zip(1..);
            let all: Vec<Tensor> =
                seeded.map(|((shape, size), seed)| numbers(seed, shape, *size, dtype)).collect();
            let full: Vec<Tensor> = all.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
            let here: Vec<Tensor> = all.iter().map(|x| x.to_device(&device).unwrap()).collect();
            let worst = difference(&ours(&here).unwrap(), &expected(&full).unwrap());
            assert!(worst <= tolerance, "{what} in {dtype:?} on {device:?}: {worst}");
        }
    }
}

#[test]
fn linear_layers_add_a_bias() {
    for (rows, from, to) in [(1, 64, 32), (37, 768, 96), (130, 96, 768)] {
        compare(
            "linear",
            &[(&[rows, from], 0.5), (&[to, from], 0.2), (&[to], 1.0)],
            |x| linear(&x[0], &x[1], &x[2]),
            |x| x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2]),
        );
    }
}

#[test]
fn linear_layers_add_to_a_residual() {
    compare(
        "add_linear",
        &[(&[37, 96], 0.5), (&[64, 96], 0.2), (&[64], 1.0), (&[37, 64], 1.0)],
        |x| {
            // A copy, because the sum takes the place of the residual.
            let y = (&x[3] * 1.0)?;
            add_linear(&y, &x[0], &x[1], &x[2])?;
            Ok(y)
        },
        |x| x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2])? + &x[3],
    );
}

#[test]
fn attention_is_softmax_of_products() {
    for (images, tokens, heads, width) in [
        (2, 17, 3, 64),
        (1, 577, 2, 64),
        (1, 65, 2, 32),
        (2, 33, 1, 128),
        (1, 40, 2, 80),
        (3, 1, 2, 64),
    ] {
        compare(
            "attention",
            &[(&[images, tokens, 3, heads, width], 1.5)],
            |x| attention(&x[0], 0.125),
            |x| {
                let part = |n| x[0].narrow(2, n, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
                let scores = (part(0)?.matmul(&part(1)?.t()?)? * 0.125)?;
                let context = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&part(2)?)?;
                context.transpose(1, 2)?.reshape((images * tokens, heads * width))
            },
        );
    }
}

#[test]
fn layer_norm_is_candles() {
    for width in [8, 768, 1024, 1536] {
        compare(
            "layer_norm",
            &[(&[7, width], 2.0), (&[width], 1.0), (&[width], 1.0)],
            |x| layer_norm(&x[0], &x[1], &x[2], 1e-5),
            |x| candle_nn::ops::layer_norm_slow(&x[0], &x[1], &x[2], 1e-5),
        );
    }
}

#[test]
fn gelu_is_exact() {
    compare(
        "gelu",
        &[(&[3, 1001], 4.0)],
        |x| {
            let y = (&x[0] * 1.0)?;
            gelu(&y)?;
            Ok(y)
        },
        |x| x[0].gelu_erf(),
    );
}

#[test]
fn products_of_views_are_rearranged() {
    // Heads inside rows, as queries are stored: `[rows, heads, k]` seen as `[heads, rows, k]`.
    let (rows, heads, k, n) = (9, 3, 32, 40);
    let inside = |x: &[Tensor]| x[0].transpose(0, 1);
    compare(
        "product",
        &[(&[rows, heads, k], 0.5), (&[heads, k, n], 0.5)],
        |x| product(&inside(x)?, &x[1], x[0].dtype(), Arrangement::BatchInside),
        |x| inside(x)?.contiguous()?.matmul(&x[1])?.transpose(0, 1)?.contiguous(),
    );
    compare(
        "product with columns in one piece, in f32",
        &[(&[rows, heads, k], 0.5), (&[heads, 37, k], 0.5)],
        |x| product(&inside(x)?, &x[1].transpose(1, 2)?, DType::F32, Arrangement::BatchFirst),
        |x| inside(x)?.contiguous()?.matmul(&x[1].transpose(1, 2)?),
    );
}

#[test]
fn scores_become_probabilities() {
    compare(
        "softmax of products",
        &[(&[2, 5, 16], 1.0), (&[2, 37, 16], 1.0)],
        |x| {
            let scores =
                product(&x[0], &x[1].transpose(1, 2)?, DType::F32, Arrangement::BatchFirst)?;
            softmax(&scores, x[0].dtype())
        },
        |x| candle_nn::ops::softmax(&x[0].matmul(&x[1].transpose(1, 2)?)?, D::Minus1),
    );
}

#[test]
fn a_step_writes_and_attends_to_its_own_positions() {
    let (rows, heads, capacity, width) = (4, 3, 40, 16);
    let positions = [5_u32, u32::MAX, 39, 0];
    compare(
        "step",
        &[(&[rows, heads, 2, capacity, width], 1.0), (&[rows, heads, 3, width], 1.0)],
        |x| {
            let positions = Tensor::new(&positions, x[0].device())?;
            let cache = (&x[0] * 1.0)?;
            step_store(&cache, &x[1], &positions)?;
            let context = step_attend(&cache, &x[1], &positions)?;
            Tensor::cat(&[context.flatten_all()?, cache.flatten_all()?], 0)
        },
        |x| {
            let (mut contexts, mut caches) = (Vec::new(), Vec::new());
            for (row, position) in positions.into_iter().enumerate() {
                let (cache, qkv) = (x[0].get(row)?, x[1].get(row)?);
                if position == u32::MAX {
                    contexts.push(Tensor::zeros(heads * width, DType::F32, &Device::Cpu)?);
                    caches.push(cache.flatten_all()?);
                    continue;
                }
                let position = position as usize;
                let new = qkv.narrow(1, 1, 2)?.unsqueeze(2)?;
                let cache = cache
                    .slice_assign(&[0..heads, 0..2, position..position + 1, 0..width], &new)?;
                let part =
                    |n| cache.narrow(1, n, 1)?.squeeze(1)?.narrow(1, 0, position + 1)?.contiguous();
                let scores = qkv.narrow(1, 0, 1)?.contiguous()?.matmul(&part(0)?.t()?)?;
                let p = candle_nn::ops::softmax_last_dim(&scores)?;
                contexts.push(p.matmul(&part(1)?)?.flatten_all()?);
                caches.push(cache.flatten_all()?);
            }
            Tensor::cat(&[contexts, caches].concat(), 0)
        },
    );
}

#[test]
fn the_best_of_a_row_come_in_order() {
    for device in devices() {
        for (length, count) in [(5, 5), (1000, 8), (30_524, 4)] {
            let x = numbers(3, &[4, length], 9.0, DType::F32);
            // Many equal ones.
            let x = ((x * 4.0).unwrap().round().unwrap() / 4.0).unwrap();
            let found = best(&x.to_device(&device).unwrap(), count).unwrap();
            let (x, found) = (x.to_vec2::<f32>().unwrap(), found.to_vec2::<f32>().unwrap());
            for (row, found) in x.iter().zip(&found) {
                let mut order: Vec<usize> = (0..length).collect();
                order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
                let expected: Vec<f32> = order[..count].iter().map(|n| *n as f32).collect();
                assert_eq!(found[..count], expected);
                let expected: Vec<f32> = order[..count].iter().map(|n| row[*n]).collect();
                assert_eq!(found[count..2 * count], expected);
                let sum: f64 = row.iter().map(|x| f64::from(x - row[order[0]]).exp()).sum();
                assert!((f64::from(found[2 * count]) / sum - 1.0).abs() < 1e-5);
                assert_eq!(found[2 * count + 1], 0.0);
            }
        }
    }
}

#[test]
fn a_number_that_is_not_finite_marks_its_row() {
    for device in devices() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut rows = vec![vec![0.5_f32; 100]; 3];
            rows[1][99] = value;
            let found = best(&Tensor::new(rows, &device).unwrap(), 2).unwrap();
            let marks: Vec<bool> =
                found.to_vec2::<f32>().unwrap().iter().map(|row| row[5].is_nan()).collect();
            assert_eq!(marks, [false, true, false], "{value}");
        }
    }
}

#[test]
fn operands_that_do_not_match_are_refused() {
    let x = |shape: &[usize]| numbers(1, shape, 1.0, DType::F32);
    assert!(linear(&x(&[2, 3]), &x(&[4, 5]), &x(&[4])).is_err());
    assert!(add_linear(&x(&[2, 5]), &x(&[2, 3]), &x(&[4, 3]), &x(&[4])).is_err());
    assert!(attention(&x(&[1, 2, 2, 4, 8]), 1.0).is_err());
    assert!(layer_norm(&x(&[2, 3]), &x(&[4]), &x(&[3]), 1e-5).is_err());
    assert!(best(&x(&[2, 3]), 4).is_err() && best(&x(&[2, 3]), 0).is_err());
    assert!(product(&x(&[2, 3, 4]), &x(&[2, 5, 6]), DType::F32, Arrangement::BatchFirst).is_err());
    let half = x(&[4, 3]).to_dtype(DType::F16).unwrap();
    assert!(linear(&x(&[2, 3]), &half, &x(&[4])).is_err());
}

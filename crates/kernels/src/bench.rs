//! A product by itself, for the benches.

use super::activations::Activations;
use super::gemm::{Epilogue, linear};
use super::packed_weights::PackedWeights;
use super::thread_pool::with_thread_pool;
use super::{Precision, Tier};

/// `y = x Wᵀ + b` with a fixed `x` and `W`.
#[derive(Debug)]
pub struct Product {
    left: Activations,
    right: PackedWeights,
    out: Vec<f32>,
}

impl Product {
    /// `x` of `rows` rows of `depth` numbers, `y` of `width`; `precision` is `f32`, `bf16` or `int8`,
    /// anything else counts as `f32`.
    #[must_use]
    pub fn new(tier: Tier, precision: &str, (rows, depth, width): (usize, usize, usize)) -> Self {
        let precision = match precision {
            "bf16" => Precision::Bf16,
            "int8" => Precision::Int8,
            _ => Precision::F32,
        };
        let number = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let weight: Vec<f32> = (0..width * depth).map(number).collect();
        let right = PackedWeights::new(tier, precision, &weight, &vec![0.5; width], depth);
        let mut left = Activations::default();
        with_thread_pool(|pool| {
            left.fill_with(pool, right.plan, rows, depth, |row, values| {
                values.iter_mut().enumerate().for_each(|(i, value)| *value = number(row + i));
            });
        });
        Self { left, right, out: vec![0.0; rows * width] }
    }

    /// Computes it so many times on all threads; one number of the result.
    pub fn run(&mut self, times: usize) -> f32 {
        with_thread_pool(|pool| {
            for _ in 0..times {
                linear(pool, &self.left, &self.right, &mut self.out, Epilogue::STORE);
            }
        });
        self.out.first().copied().unwrap_or_default()
    }
}

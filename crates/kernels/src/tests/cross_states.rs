//! Cross-attention to states, compared with keys and values in double precision.

use super::{Isa, PRECISIONS, noise};
use crate::attention::Heads;
use crate::cross_states::{
    FoldedKeys, StatesItem, StatesLayer, StatesScratch, StatesTable, attend,
};
use crate::packed_weights::PackedWeights;
use crate::thread_pool::{ThreadPool, with_thread_pool};
use crate::{Precision, Tier};

/// A layer with noise as its weights, for states of `width` numbers.
struct Layer {
    heads: Heads,
    width: usize,
    /// Keys, then values: `[2 · heads' width, width]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    fn new(heads: Heads, width: usize) -> Self {
        let numbers = 2 * heads.width() * width;
        let weight = noise(numbers, 3).iter().map(|w| w * 0.5).collect();
        Self { heads, width, weight, bias: noise(2 * heads.width(), 4) }
    }

    fn pack(&self, isa: Isa, precision: Precision) -> (FoldedKeys, PackedWeights) {
        let keys = &self.weight[..self.heads.width() * self.width];
        (
            FoldedKeys::new(isa, precision, self.heads, keys),
            PackedWeights::new(isa, precision, &self.weight, &self.bias, self.width),
        )
    }

    /// The attention of a query, by way of keys and values.
    fn plain(&self, query: &[f32], states: &[f32]) -> Vec<f64> {
        let (size, width) = (self.heads.size, self.heads.width());
        let project = |row: usize, state: &[f32]| {
            let weights = &self.weight[row * self.width..][..self.width];
            let products = weights.iter().zip(state).map(|(w, s)| f64::from(*w) * f64::from(*s));
            products.sum::<f64>() + f64::from(self.bias[row])
        };
        let states = || states.chunks_exact(self.width);
        let of_head = |head: usize| {
            let score = |state: &[f32]| {
                let key = |i: usize| project(head * size + i, state);
                let dot =
                    (0..size).map(|i| f64::from(query[head * size + i]) * key(i)).sum::<f64>();
                (dot / (size as f64).sqrt()).exp()
            };
            let weights: Vec<f64> = states().map(score).collect();
            let sum: f64 = weights.iter().sum();
            let value = move |i: usize| {
                let values = states().map(|state| project(width + head * size + i, state));
                values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / sum
            };
            (0..size).map(value).collect::<Vec<_>>()
        };
        (0..self.heads.count).flat_map(of_head).collect()
    }
}

#[test]
fn attention_to_states_agrees_with_keys_and_values_and_is_independent_of_the_batch() {
    for isa in Isa::available() {
        for (precision, tolerance) in PRECISIONS.into_iter().zip([3e-6, 0.02, 0.03]) {
            for (tokens, size, width) in [(1, 4, 8), (63, 16, 33), (64, 64, 48), (130, 40, 96)] {
                let layer = Layer::new(Heads { count: 3, size }, width);
                let (keys, values) = layer.pack(isa, precision);
                let packed = StatesLayer { keys: &keys, values: &values };
                let images = [20, 21].map(|seed| noise(tokens * width, seed));
                let tables = [0, 1].map(|n| {
                    let mut table = StatesTable::new(isa, precision);
                    let pool = &ThreadPool::single_threaded();
                    // Remains of an earlier and larger image must not have an effect.
                    table.fill(pool, &vec![f32::NAN; 2 * tokens * width], width);
                    table.fill(pool, &images[n], width);
                    table
                });
                let row = layer.heads.width();
                let queries = noise(5 * row, 40);
                let mut out = vec![f32::NAN; 5 * row];
                // Row 1 belongs to neither item.
                let items = [
                    StatesItem { table: &tables[0], first: 0, count: 1 },
                    StatesItem { table: &tables[1], first: 2, count: 3 },
                ];
                let scratch = &mut StatesScratch::default();
                with_thread_pool(|pool| {
                    attend(pool, packed, items.iter().copied(), &queries, scratch, &mut out);
                });
                assert!(out[row..2 * row].iter().all(|x| x.is_nan()), "another row was written");
                for (n, image) in [(0, 0), (2, 1), (3, 1), (4, 1)] {
                    let truth = layer.plain(&queries[n * row..][..row], &images[image]);
                    for (value, truth) in out[n * row..][..row].iter().zip(truth) {
                        let error = (f64::from(*value) - truth).abs();
                        let case = format!("{isa} {precision:?} {tokens}×{size}×{width}");
                        assert!(error < tolerance * (width as f64).sqrt(), "{case}: {error}");
                    }
                }
                let mut alone = vec![0.0; row];
                let item = StatesItem { table: &tables[1], first: 0, count: 1 };
                let (pool, query) = (&ThreadPool::single_threaded(), &queries[3 * row..4 * row]);
                attend(pool, packed, std::iter::once(item), query, scratch, &mut alone);
                assert_eq!(alone, out[3 * row..4 * row], "{isa} {precision:?}");
            }
        }
    }
}

#[test]
fn a_table_returns_its_states() {
    for isa in Isa::available() {
        for (precision, tolerance) in PRECISIONS.into_iter().zip([0.0, 0.002, 0.002]) {
            for (tokens, width) in [(1, 1), (2, 16), (35, 33), (64, 96)] {
                let states = noise(tokens * width, 50);
                let mut table = StatesTable::new(isa, precision);
                with_thread_pool(|pool| table.fill(pool, &states, width));
                assert_eq!((table.tokens(), table.width()), (tokens, width));
                let mut read = vec![f32::NAN; tokens * width];
                table.read(&mut read);
                for (read, state) in read.iter().zip(&states) {
                    assert!((read - state).abs() <= tolerance, "{isa} {precision:?}");
                }
            }
        }
    }
}

/// A NaN reaches the row that it belongs to, and no other.
#[test]
fn a_query_with_nan_gives_nan_and_leaves_others_alone() {
    for isa in Isa::available().filter(|isa| isa.tier() != Tier::Portable) {
        for precision in PRECISIONS {
            let layer = Layer::new(Heads { count: 2, size: 16 }, 32);
            let (keys, values) = layer.pack(isa, precision);
            let mut table = StatesTable::new(isa, precision);
            let mut queries = noise(2 * 32, 60);
            queries[3] = f32::NAN;
            let mut out = vec![0.0; 2 * 32];
            with_thread_pool(|pool| {
                table.fill(pool, &noise(20 * 32, 61), 32);
                let item = StatesItem { table: &table, first: 0, count: 2 };
                let packed = StatesLayer { keys: &keys, values: &values };
                let scratch = &mut StatesScratch::default();
                attend(pool, packed, std::iter::once(item), &queries, scratch, &mut out);
            });
            assert!(out[..16].iter().all(|x| x.is_nan()), "{isa} {precision:?}");
            assert!(out[16..].iter().all(|x| x.is_finite()), "{isa} {precision:?}");
        }
    }
}

#[test]
fn no_items_write_nothing() {
    let layer = Layer::new(Heads { count: 1, size: 16 }, 16);
    let (keys, values) = layer.pack(Isa::best(), Precision::F32);
    let packed = StatesLayer { keys: &keys, values: &values };
    with_thread_pool(|pool| {
        attend(pool, packed, std::iter::empty(), &[], &mut StatesScratch::default(), &mut []);
    });
}

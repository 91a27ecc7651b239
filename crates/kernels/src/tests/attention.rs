//! Attention: of the vision tower, over an image, and over the tokens so far.

use super::{Isa, PRECISIONS, noise};
use crate::attention::{Heads, SelfAttention};
use crate::buffer::Buffer;
use crate::cross_kv::{self, CrossKv};
use crate::self_kv::{self, SelfKv};
use crate::thread_pool::{ThreadPool, with_thread_pool};

/// `softmax(q kᵀ / √d) v` of one head in double precision.
fn plain_attention(q: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let weights: Vec<f64> = keys.iter().map(|key| (dot(key) * scale).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mix =
        |i: usize| values.iter().zip(&weights).map(|(v, w)| f64::from(v[i]) * w).sum::<f64>() / sum;
    (0..q.len()).map(mix).collect()
}

#[test]
fn self_attention_agrees_with_plain_loops() {
    for isa in Isa::available() {
        for (precision, tolerance) in PRECISIONS.into_iter().zip([2e-6, 0.02, 0.02]) {
            for (tokens, heads, size) in
                [(1, 1, 8), (5, 3, 16), (17, 2, 64), (65, 2, 24), (100, 1, 80)]
            {
                let heads = Heads { count: heads, size };
                let width = heads.width();
                let qkv: Vec<f32> = noise(tokens * 3 * width, 20).iter().map(|v| v * 2.0).collect();
                let mut out = vec![f32::NAN; tokens * width];
                let mut attention = SelfAttention::new(isa, precision, heads);
                with_thread_pool(|pool| attention.run(pool, &qkv, tokens, &mut out));
                let part = |token: usize, part: usize, head: usize| {
                    &qkv[token * 3 * width + part * width + head * size..][..size]
                };
                for (head, query) in (0..heads.count).flat_map(|h| (0..tokens).map(move |t| (h, t)))
                {
                    let keys: Vec<&[f32]> = (0..tokens).map(|t| part(t, 1, head)).collect();
                    let values: Vec<&[f32]> = (0..tokens).map(|t| part(t, 2, head)).collect();
                    let truth = plain_attention(part(query, 0, head), &keys, &values);
                    let got = &out[query * width + head * size..][..size];
                    for (value, truth) in got.iter().zip(truth) {
                        let error = (f64::from(*value) - truth).abs();
                        assert!(error < tolerance, "{isa} {precision:?} {tokens}×{size}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn cross_attention_agrees_with_plain_loops_and_is_independent_of_the_batch() {
    for isa in Isa::available() {
        for (precision, tolerance) in PRECISIONS.into_iter().zip([2e-6, 0.01, 0.02]) {
            for (tokens, size) in [(1, 4), (63, 16), (64, 64), (65, 64), (130, 80)] {
                let heads = Heads { count: 2, size };
                let width = heads.width();
                let tables: Vec<Vec<f32>> =
                    (0..2).map(|n| noise(tokens * 2 * width, 30 + n)).collect();
                let fill = |table: &Vec<f32>| {
                    let mut kv = CrossKv::new(precision, heads);
                    // Remains of an earlier and larger image must not have an effect.
                    let earlier = vec![7.0; 2 * table.len()];
                    kv.fill(&ThreadPool::single_threaded(), isa, &earlier);
                    kv.fill(&ThreadPool::single_threaded(), isa, table);
                    kv
                };
                let kvs: Vec<CrossKv> = tables.iter().map(fill).collect();
                let queries = noise(3 * width, 40);
                let mut out = vec![f32::NAN; 3 * width];
                let items = [(&kvs[0], 0, 1), (&kvs[1], 1, 2)];
                with_thread_pool(|pool| {
                    let scratch = &mut Buffer::new();
                    cross_kv::attend(pool, isa, items.iter().copied(), &queries, scratch, &mut out);
                });
                for (row, table) in [(0, 0), (1, 1), (2, 1)] {
                    let part = |token: usize, part: usize, head: usize| {
                        &tables[table][token * 2 * width + part * width + head * size..][..size]
                    };
                    for head in 0..2 {
                        let keys: Vec<&[f32]> = (0..tokens).map(|t| part(t, 0, head)).collect();
                        let values: Vec<&[f32]> = (0..tokens).map(|t| part(t, 1, head)).collect();
                        let query = &queries[row * width + head * size..][..size];
                        let truth = plain_attention(query, &keys, &values);
                        for (value, truth) in
                            out[row * width + head * size..][..size].iter().zip(truth)
                        {
                            let error = (f64::from(*value) - truth).abs();
                            assert!(
                                error < tolerance,
                                "{isa} {precision:?} {tokens}×{size}: {error}"
                            );
                        }
                    }
                }
                let mut single_threaded = vec![0.0; width];
                let single = [(&kvs[1], 0, 1)];
                let (scratch, query) = (&mut Buffer::new(), &queries[2 * width..]);
                cross_kv::attend(
                    &ThreadPool::single_threaded(),
                    isa,
                    single.iter().copied(),
                    query,
                    scratch,
                    &mut single_threaded,
                );
                assert_eq!(single_threaded, out[2 * width..], "{isa} {precision:?}");
                assert!(kvs[0].bytes() > 0);
            }
        }
    }
}

/// Attention of one token at a time agrees with plain loops, also after rows were reordered.
#[test]
fn decoding_attention_agrees_with_plain_loops_after_a_reorder() {
    for isa in Isa::available() {
        for size in [16, 64, 80] {
            let heads = Heads { count: 2, size };
            let width = heads.width();
            let tokens: Vec<Vec<f32>> = (0..5).map(|n| noise(3 * width, 70 + n)).collect();
            let mut kv = SelfKv::new(heads, 1);
            kv.reset(4);
            kv.write(0, 0, 0, &tokens[0]);
            kv.reorder(&[0, 0], 1);
            kv.write(0, 0, 1, &tokens[1]);
            kv.write(0, 1, 1, &tokens[2]);
            // Both rows continue the second one.
            kv.reorder(&[1, 1], 2);
            kv.write(0, 0, 2, &tokens[3]);
            kv.write(0, 1, 2, &tokens[4]);
            let qkv = [&tokens[3][..], &tokens[4]].concat();
            let mut out = vec![f32::NAN; 2 * width];
            with_thread_pool(|pool| {
                let items = [(&kv, 2)].into_iter();
                self_kv::attend(pool, (isa, 0, 1), items, &qkv, &mut Buffer::new(), &mut out);
            });
            for (row, last) in [(0, 3), (1, 4)] {
                for head in 0..2 {
                    let part = |token: usize, part: usize| {
                        &tokens[token][part * width + head * size..][..size]
                    };
                    let keys = [0, 2, last].map(|token| part(token, 1));
                    let values = [0, 2, last].map(|token| part(token, 2));
                    let truth = plain_attention(part(last, 0), &keys, &values);
                    let got = &out[row * width + head * size..][..size];
                    for (value, truth) in got.iter().zip(truth) {
                        assert!((f64::from(*value) - truth).abs() < 2e-6, "{isa} {size} {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn attention_of_no_rows_writes_nothing() {
    let heads = Heads { count: 2, size: 16 };
    for isa in Isa::available() {
        for precision in PRECISIONS {
            with_thread_pool(|pool| {
                let scratch = &mut Buffer::new();
                cross_kv::attend(pool, isa, std::iter::empty(), &[], scratch, &mut []);
                self_kv::attend(pool, (isa, 0, 1), [].into_iter(), &[], scratch, &mut []);
                SelfAttention::new(isa, precision, heads).run(pool, &[], 0, &mut []);
            });
        }
    }
}

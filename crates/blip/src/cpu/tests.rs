//! What a job attends to, and when. The captions are compared with transformers in tests/it/parity.

use std::path::Path;

use super::image_attention::ImageAttention;
use super::*;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

/// Heads of 16 numbers: keys and values are worth their cost after six tokens.
fn tiny(tier: Tier, precision: Precision) -> CpuWeights {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/tied");
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config = BlipConfig::from_json(&config).unwrap();
    let weights = Weights::from_files(&[folder.join("model.safetensors")]).unwrap();
    CpuWeights::load(&config, &weights, tier, precision).unwrap()
}

fn states(model: &CpuWeights, work: &mut Workspace, seed: usize) -> Vec<f32> {
    let value = |n: usize| ((n * 37 + seed * 911) % 101) as f32 / 50.0 - 1.0;
    let pixels: Vec<f32> = (0..3 * 16 * 16).map(value).collect();
    model.encode(work, &pixels, 16, 16).unwrap()
}

fn has_keys_and_values(slot: &CpuSlot) -> bool {
    matches!(slot.image, ImageAttention::KeysAndValues(_))
}

fn token(n: usize) -> u32 {
    (5 + 7 * n % 60) as u32
}

#[test]
fn keys_and_values_come_when_they_are_worth_their_cost() {
    let model = tiny(Tier::Portable, Precision::F32);
    let work = &mut model.new_workspace();
    let image = states(&model, work, 1);
    let mut slot = model.begin(work, &image, SlotSize::new(12, 1)).unwrap();
    for n in 0..12 {
        assert_eq!(has_keys_and_values(&slot), n > 6, "after {n} tokens");
        model.step(work, &mut [&mut slot], &[token(n)]).unwrap();
    }
    // A prompt counts with all of its tokens, and a row as much as another.
    let mut prompted = model.begin(work, &image, SlotSize::new(12, 1)).unwrap();
    model.prefill(work, &mut prompted, &[1, 2, 3, 4, 5, 6, 7]).unwrap();
    assert!(has_keys_and_values(&prompted));
    for (rows, capacity, expected) in [(1, 12, false), (2, 3, false), (2, 12, true), (5, 2, true)] {
        let slot = model.begin(work, &image, SlotSize::new(capacity, rows)).unwrap();
        assert_eq!(has_keys_and_values(&slot), expected, "{rows} × {capacity}");
    }
    // A caption that must become long gets them at once.
    for (least, expected) in [(6, false), (7, true)] {
        let size = SlotSize { least, ..SlotSize::new(12, 1) };
        let slot = model.begin(work, &image, size).unwrap();
        assert_eq!(has_keys_and_values(&slot), expected, "at least {least}");
    }
}

#[test]
fn states_and_their_keys_and_values_give_the_same_logits() {
    let [states, keys_and_values] = both_ways(Tier::Portable, Precision::F32);
    let worst = worst_difference(&states, &keys_and_values);
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn states_are_as_exact_as_keys_and_values() {
    let [_, exact] = both_ways(Tier::Portable, Precision::F32);
    for &tier in Tier::available() {
        for precision in PRECISIONS {
            let [ours, theirs] =
                both_ways(tier, precision).map(|logits| worst_difference(&logits, &exact));
            assert!(ours < 1.5 * theirs + 1e-5, "{tier:?} {precision:?}: {ours}, {theirs}");
        }
    }
}

/// The logits of six tokens, by the states and by their keys and values.
fn both_ways(tier: Tier, precision: Precision) -> [Vec<f32>; 2] {
    let model = tiny(tier, precision);
    let work = &mut model.new_workspace();
    let image = states(&model, work, 2);
    // The second could have as many rows as would be expensive, but it only ever has one.
    [1, 5].map(|rows| {
        let mut slot = model.begin(work, &image, SlotSize::new(6, rows)).unwrap();
        assert_eq!(has_keys_and_values(&slot), rows == 5);
        let logits = |n| model.step(work, &mut [&mut slot], &[token(n)]).unwrap().to_vec();
        (0..6).flat_map(logits).collect()
    })
}

fn worst_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// One slot changes to keys and values in the middle, one has them, and one never gets them.
#[test]
fn a_slot_has_the_same_bits_alone_and_in_a_batch() {
    for &tier in Tier::available() {
        for precision in PRECISIONS {
            let model = tiny(tier, precision);
            let work = &mut model.new_workspace();
            let images = [3, 4, 5].map(|seed| states(&model, work, seed));
            let alone: Vec<Vec<f32>> = images
                .iter()
                .zip([1, 5, 1])
                .map(|(image, rows)| {
                    let mut slot = model.begin(work, image, SlotSize::new(12, rows)).unwrap();
                    let logits =
                        |n| model.step(work, &mut [&mut slot], &[token(n)]).unwrap().to_vec();
                    (0..10).map(logits).collect::<Vec<_>>().concat()
                })
                .collect();
            let [mut a, mut b] = [(0, 1), (1, 5)]
                .map(|(n, rows)| model.begin(work, &images[n], SlotSize::new(12, rows)).unwrap());
            let mut together = vec![Vec::new(); 3];
            let mut late = None;
            for n in 0..10 {
                // The third joins late, so that it still has states when the first has none.
                let mut slots = vec![&mut a, &mut b];
                let mut tokens = vec![token(n); 2];
                if n >= 5 {
                    let slot = late.get_or_insert_with(|| {
                        model.begin(work, &images[2], SlotSize::new(12, 1)).unwrap()
                    });
                    slots.insert(1, slot);
                    tokens.insert(1, token(n - 5));
                }
                let order: &[usize] = if n >= 5 { &[0, 2, 1] } else { &[0, 1] };
                let logits = model.step(work, &mut slots, &tokens).unwrap();
                let each = logits.len() / order.len();
                for (&slot, logits) in order.iter().zip(logits.chunks_exact(each)) {
                    together[slot].extend_from_slice(logits);
                }
            }
            for (alone, together) in alone.iter().zip(&together) {
                assert_eq!(alone[..together.len()], together[..], "{tier:?} {precision:?}");
            }
            assert!(has_keys_and_values(&a) && !has_keys_and_values(&late.unwrap()));
        }
    }
}

//! The state of captions: buffers that grow, gaps that are closed, slots that come and go. The
//! captions themselves are compared with transformers and with the CPU's model in tests/it/parity.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::CpuModel;
use cutline_kernels::{Precision, Tier};

const FIRST: u32 = 78;

fn tiny<T>(load: impl Fn(&BlipConfig, &Weights) -> T) -> T {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/tied");
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let weights = Weights::from_files(&[folder.join("model.safetensors")]).unwrap();
    load(&BlipConfig::from_json(&config).unwrap(), &weights)
}

fn weights() -> GpuWeights {
    tiny(|config, weights| GpuWeights::load(config, weights, DType::F32, &Device::Cpu).unwrap())
}

/// The states of an image of 16 × 16 or, if it is wide, 24 × 16 pixels.
fn image(model: &GpuWeights, seed: usize, wide: bool) -> Tensor {
    let (width, height) = if wide { (24, 16) } else { (16, 16) };
    let value = |n: usize| ((n * 37 + seed * 911) % 101) as f32 / 50.0 - 1.0;
    let pixels: Vec<f32> = (0..3 * width * height).map(value).collect();
    model.encode(&[&pixels], width, height).unwrap().remove(0)
}

fn logits(scores: &[Scores]) -> Vec<f32> {
    let all = |scores: &Scores| match scores {
        Scores::Logits(logits) => logits.clone(),
        other => panic!("{other:?}"),
    };
    scores.iter().flat_map(all).collect()
}

/// Reads the tokens one by one in a separate state, and returns the last logits.
fn alone(model: &GpuWeights, image: &Tensor, tokens: &[u32]) -> Vec<f32> {
    let mut state = model.new_state();
    let mut slot = model.begin(&mut state, image, tokens.len(), 1).unwrap();
    let mut last = Vec::new();
    for token in tokens {
        let read = Read { slot: &mut slot, tokens: &[*token], top: None };
        last = logits(&model.read(&mut state, &mut [read]).unwrap());
    }
    last
}

fn assert_close(ours: &[f32], expected: &[f32], what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let worst = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{what}: {worst}");
}

/// The tokens of the caption of image `n`.
fn tokens(n: usize) -> Vec<u32> {
    std::iter::once(FIRST).chain((0..20).map(|place| (n * 13 + place * 7) as u32 % 77)).collect()
}

#[test]
fn both_implementations_count_the_same_parameters() {
    let on_cpu = |config: &BlipConfig, weights: &Weights| {
        let model = CpuModel::load(config, weights, Tier::Portable, Precision::F32).unwrap();
        model.describe().parameters
    };
    assert_eq!(weights().description().parameters, tiny(on_cpu));
}

#[test]
fn caches_grow_with_what_is_written() {
    let model = weights();
    let image = image(&model, 1, false);
    for prompt in [1, 6] {
        let mut state = model.new_state_growing_by(4);
        let mut slot = model.begin(&mut state, &image, 21, 1).unwrap();
        let all = tokens(0);
        let mut read = &all[..prompt];
        let mut rest = &all[prompt..];
        loop {
            let reads = &mut [Read { slot: &mut slot, tokens: read, top: None }];
            let ours = logits(&model.read(&mut state, reads).unwrap());
            let so_far = &all[..all.len() - rest.len()];
            assert_close(
                &ours,
                &alone(&model, &image, so_far),
                &format!("{} tokens", so_far.len()),
            );
            let Some((next, behind)) = rest.split_first() else { break };
            (read, rest) = (std::slice::from_ref(next), behind);
        }
        assert!(slot.position() == 21);
        let full = &mut [Read { slot: &mut slot, tokens: &[1], top: None }];
        assert!(model.read(&mut state, full).is_err(), "the slot is full");
    }
}

#[test]
fn slots_come_and_go_and_gaps_are_closed() {
    let model = weights();
    let mut state = model.new_state();
    let images: Vec<Tensor> = (0..12).map(|n| image(&model, n, n % 4 == 3)).collect();
    let begin =
        |state: &mut GpuState, n: usize| Some(model.begin(state, &images[n], 21, 1).unwrap());
    let mut slots: Vec<Option<GpuSlot>> = (0..12).map(|n| begin(&mut state, n)).collect();
    for step in 0..12 {
        // From the fourth step on one slot is dropped in each, and in the tenth two are added
        // again.
        if (3..10).contains(&step) {
            slots[step - 3] = None;
        }
        if step == 9 {
            slots[1] = begin(&mut state, 1);
            slots[3] = begin(&mut state, 3);
        }
        let mut reads = Vec::new();
        let mut expected = Vec::new();
        let all: Vec<Vec<u32>> = (0..12).map(tokens).collect();
        for (n, slot) in slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            let so_far = slot.position() + 1;
            expected.extend(alone(&model, &images[n], &all[n][..so_far]));
            let tokens = &all[n][so_far - 1..so_far];
            reads.push(Read { slot, tokens, top: None });
        }
        let ours = logits(&model.read(&mut state, &mut reads).unwrap());
        assert_close(&ours, &expected, &format!("step {step}"));
    }
}

#[test]
fn rows_continue_their_sources() {
    let model = weights();
    let image = image(&model, 3, true);
    let mut state = model.new_state();
    let mut slot = model.begin(&mut state, &image, 21, 3).unwrap();
    let mut beams: Vec<Vec<u32>> = vec![vec![FIRST]];
    let moves: [&[usize]; 6] = [&[0, 0, 0], &[2, 0, 1], &[0, 1, 2], &[1, 1, 0], &[2, 2], &[1]];
    for (step, sources) in moves.into_iter().enumerate() {
        let next: Vec<u32> = beams.iter().map(|beam| beam[beam.len() - 1]).collect();
        let reads = &mut [Read { slot: &mut slot, tokens: &next, top: None }];
        let ours = logits(&model.read(&mut state, reads).unwrap());
        let expected: Vec<f32> =
            beams.iter().flat_map(|beam| alone(&model, &image, beam)).collect();
        assert_close(&ours, &expected, &format!("step {step}"));
        slot.reorder(sources).unwrap();
        beams = sources.iter().map(|&source| beams[source].clone()).collect();
        for (row, beam) in beams.iter_mut().enumerate() {
            beam.push((step * 11 + row * 5) as u32 % 77);
        }
    }
    assert!(slot.reorder(&[1]).is_err() && slot.reorder(&[]).is_err());
    assert!(slot.reorder(&[0; 4]).is_err(), "more than the slot was made for");
}

#[test]
fn only_the_logits_that_were_asked_for_come_back() {
    let model = weights();
    let mut state = model.new_state();
    let images: Vec<Tensor> = (0..3).map(|n| image(&model, n, false)).collect();
    let mut slots: Vec<GpuSlot> =
        images.iter().map(|image| model.begin(&mut state, image, 21, 1).unwrap()).collect();
    assert!(slots[0].logits().is_err(), "nothing was read");
    let wanted = [Some(3), None, Some(8)];
    let mut reads: Vec<Read<'_, GpuSlot>> = slots
        .iter_mut()
        .zip(wanted)
        .map(|(slot, top)| Read { slot, tokens: &[FIRST], top })
        .collect();
    let scores = model.read(&mut state, &mut reads).unwrap();
    for ((image, slot), scores) in images.iter().zip(&slots).zip(&scores) {
        let expected = alone(&model, image, &[FIRST]);
        match scores {
            Scores::Logits(logits) => assert_close(logits, &expected, "all"),
            Scores::Top(rows) => {
                assert_close(&slot.logits().unwrap(), &expected, "all, afterwards");
                let (token, value) = rows[0].tokens[0];
                let max = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_close(&[value, expected[token as usize]], &[max, max], "the greatest");
            }
            Scores::NotFinite => panic!("the logits are finite"),
        }
    }
    assert!(matches!(scores[1], Scores::Logits(_)));
}

#[test]
fn reads_that_do_not_fit_are_refused_and_change_nothing() {
    let model = weights();
    let mut state = model.new_state();
    let image = image(&model, 1, false);
    let mut slot = model.begin(&mut state, &image, 3, 2).unwrap();
    let mut other = model.begin(&mut state, &image, 3, 2).unwrap();
    let read = |state: &mut GpuState, slot: &mut GpuSlot, tokens: &[u32]| {
        model.read(state, &mut [Read { slot, tokens, top: None }]).map(|s| logits(&s))
    };
    assert!(read(&mut state, &mut slot, &[]).is_err());
    assert!(read(&mut state, &mut slot, &[FIRST; 4]).is_err(), "more than its capacity");
    assert!(read(&mut state, &mut slot, &[80]).is_err(), "not in the vocabulary");
    let first = read(&mut state, &mut slot, &[FIRST]).unwrap();
    assert_close(&first, &alone(&model, &image, &[FIRST]), "as if nothing had happened");
    assert!(read(&mut state, &mut slot, &[1, 2]).is_err(), "it has one row");
    state.clear();
    assert!(read(&mut state, &mut slot, &[1]).is_err(), "its state was dropped");
    assert!(read(&mut state, &mut other, &[FIRST]).is_err());
    let mut again = model.begin(&mut state, &image, 3, 2).unwrap();
    assert_close(
        &read(&mut state, &mut again, &[FIRST]).unwrap(),
        &first,
        "after everything was dropped",
    );
}

/// What a GPU computes whose kernels all fail the check.
#[test]
fn candles_operations_write_the_same() {
    let all: Vec<Vec<u32>> = (0..3).map(tokens).collect();
    let run = |kernels: GpuKernels| {
        tiny(|config, weights| {
            let device = Device::Cpu;
            let chosen = kernels.operations(config, DType::F32, &device).unwrap();
            let model = GpuWeights::load(config, weights, DType::F32, &device).unwrap();
            let model = model.computing_with(&chosen);
            assert_eq!(model.description().kernels, "candle", "what multiplies on a CPU");
            let mut state = model.new_state();
            let images: Vec<Tensor> = (0..3).map(|n| image(&model, n, n == 2)).collect();
            let begin = |state: &mut GpuState, n: usize| model.begin(state, &images[n], 21, 1 + n);
            let mut slots: Vec<GpuSlot> = (0..3).map(|n| begin(&mut state, n).unwrap()).collect();
            let mut everything = Vec::new();
            // A prompt, and then three steps, of which the second is without the first image.
            for step in 0..4 {
                let mut reads = Vec::new();
                for (n, slot) in slots.iter_mut().enumerate().skip(usize::from(step == 2)) {
                    let read =
                        if step == 0 { &all[n][..4 + n] } else { &all[n][6 + step..7 + step] };
                    reads.push(Read { slot, tokens: read, top: None });
                }
                everything.extend(logits(&model.read(&mut state, &mut reads).unwrap()));
            }
            let reads = &mut [Read { slot: &mut slots[0], tokens: &all[0][..1], top: Some(3) }];
            match model.read(&mut state, reads).unwrap().remove(0) {
                Scores::Top(top) => (everything, top[0].tokens[..3].to_vec(), top[0].log_sum),
                other => panic!("{other:?}"),
            }
        })
    };
    let (ours, candles) = (run(GpuKernels::Auto), run(GpuKernels::Candle));
    assert_close(&candles.0, &ours.0, "all logits");
    let ids = |top: &[(u32, f32)]| top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(&candles.1), ids(&ours.1));
    assert!((candles.2 - ours.2).abs() < 1e-4);
}

#[test]
fn large_images_are_encoded_in_smaller_batches() {
    let model = weights();
    assert_eq!(model.vision_batch(16, 16), MAX_IMAGES);
    let [some, fewer] = [4096, 8192].map(|side| model.vision_batch(side, side));
    assert!(fewer < some && some < MAX_IMAGES, "{some} {fewer}");
    assert_eq!(model.vision_batch(1 << 20, 1 << 20), 1);
}

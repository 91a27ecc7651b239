//! The state of captions: buffers that grow, gaps that are closed, items that come and go. What is
//! written is compared with the other models in tests/it/parity.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::BlipModel;

const FIRST: u32 = 78;

fn tiny<T>(load: impl Fn(&BlipConfig, &Weights) -> T) -> T {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tied");
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let weights = Weights::from_files(&[folder.join("model.safetensors")]).unwrap();
    load(&BlipConfig::from_json(&config).unwrap(), &weights)
}

fn model() -> GpuModel {
    tiny(|config, weights| GpuModel::load(config, weights, DType::F32, &Device::Cpu).unwrap())
}

/// States of an image of 16 × 16 or, if it is wide, 24 × 16 pixels.
fn image(model: &GpuModel, seed: usize, wide: bool) -> Tensor {
    let (width, height) = if wide { (24, 16) } else { (16, 16) };
    let value = |n: usize| ((n * 37 + seed * 911) % 101) as f32 / 50.0 - 1.0;
    let pixels: Vec<f32> = (0..3 * width * height).map(value).collect();
    model.encode(&[(&pixels, width, height)]).unwrap().remove(0)
}

fn logits(scores: &[GpuScores]) -> Vec<f32> {
    let all = |scores: &GpuScores| match scores {
        GpuScores::Logits(logits) => logits.clone(),
        other => panic!("{other:?}"),
    };
    scores.iter().flat_map(all).collect()
}

/// Reads so many tokens one by one in a state of its own; the last logits.
fn alone(model: &GpuModel, image: &Tensor, tokens: &[u32]) -> Vec<f32> {
    let mut state = model.state().unwrap();
    let mut item = model.begin(&mut state, image, tokens.len(), 1).unwrap();
    let mut last = Vec::new();
    for token in tokens {
        let read = GpuRead { item: &mut item, tokens: &[*token], best: None };
        last = logits(&model.read(&mut state, &mut [read]).unwrap());
    }
    last
}

fn assert_close(ours: &[f32], expected: &[f32], what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let worst = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{what}: {worst}");
}

/// The tokens that image `n` reads.
fn tokens(n: usize) -> Vec<u32> {
    std::iter::once(FIRST).chain((0..20).map(|place| (n * 13 + place * 7) as u32 % 77)).collect()
}

#[test]
fn it_has_as_many_parameters_as_the_reference() {
    let reference = |config: &BlipConfig, weights: &Weights| {
        BlipModel::load(config, weights, DType::F32, &Device::Cpu).unwrap().parameters()
    };
    assert_eq!(model().parameters(), tiny(reference));
}

#[test]
fn caches_grow_with_what_is_written() {
    let model = model();
    let image = image(&model, 1, false);
    for prompt in [1, 6] {
        let mut state = model.state_in_steps_of(4).unwrap();
        let mut item = model.begin(&mut state, &image, 21, 1).unwrap();
        let all = tokens(0);
        let mut read = &all[..prompt];
        let mut rest = &all[prompt..];
        loop {
            let reads = &mut [GpuRead { item: &mut item, tokens: read, best: None }];
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
        assert!(item.is_full() && item.position() == 21);
        let full = &mut [GpuRead { item: &mut item, tokens: &[1], best: None }];
        assert!(model.read(&mut state, full).is_err(), "there is no place left");
    }
}

#[test]
fn items_come_and_go_and_gaps_are_closed_under_those_who_stay() {
    let model = model();
    let mut state = model.state().unwrap();
    let images: Vec<Tensor> = (0..12).map(|n| image(&model, n, n % 4 == 3)).collect();
    let begin =
        |state: &mut GpuState, n: usize| Some(model.begin(state, &images[n], 21, 1).unwrap());
    let mut items: Vec<Option<GpuSlot>> = (0..12).map(|n| begin(&mut state, n)).collect();
    for step in 0..12 {
        // From the fourth step on one leaves, and two come back in the tenth.
        if (3..10).contains(&step) {
            items[step - 3] = None;
        }
        if step == 9 {
            items[1] = begin(&mut state, 1);
            items[3] = begin(&mut state, 3);
        }
        let mut reads = Vec::new();
        let mut expected = Vec::new();
        let all: Vec<Vec<u32>> = (0..12).map(tokens).collect();
        for (n, item) in items.iter_mut().enumerate() {
            let Some(item) = item else { continue };
            let so_far = item.position() + 1;
            expected.extend(alone(&model, &images[n], &all[n][..so_far]));
            let tokens = &all[n][so_far - 1..so_far];
            reads.push(GpuRead { item, tokens, best: None });
        }
        let ours = logits(&model.read(&mut state, &mut reads).unwrap());
        assert_close(&ours, &expected, &format!("step {step}"));
    }
}

#[test]
fn rows_continue_the_rows_they_say() {
    let model = model();
    let image = image(&model, 3, true);
    let mut state = model.state().unwrap();
    let mut item = model.begin(&mut state, &image, 21, 3).unwrap();
    let mut beams: Vec<Vec<u32>> = vec![vec![FIRST]];
    let moves: [&[usize]; 6] = [&[0, 0, 0], &[2, 0, 1], &[0, 1, 2], &[1, 1, 0], &[2, 2], &[1]];
    for (step, sources) in moves.into_iter().enumerate() {
        let next: Vec<u32> = beams.iter().map(|beam| beam[beam.len() - 1]).collect();
        let reads = &mut [GpuRead { item: &mut item, tokens: &next, best: None }];
        let ours = logits(&model.read(&mut state, reads).unwrap());
        let expected: Vec<f32> =
            beams.iter().flat_map(|beam| alone(&model, &image, beam)).collect();
        assert_close(&ours, &expected, &format!("step {step}"));
        item.reorder(sources).unwrap();
        beams = sources.iter().map(|&source| beams[source].clone()).collect();
        for (row, beam) in beams.iter_mut().enumerate() {
            beam.push((step * 11 + row * 5) as u32 % 77);
        }
    }
    assert!(item.reorder(&[1]).is_err() && item.reorder(&[]).is_err());
    assert!(item.reorder(&[0; 4]).is_err(), "more than it was begun for");
}

#[test]
fn what_is_asked_for_comes_back_and_no_more() {
    let model = model();
    let mut state = model.state().unwrap();
    let images: Vec<Tensor> = (0..3).map(|n| image(&model, n, false)).collect();
    let mut items: Vec<GpuSlot> =
        images.iter().map(|image| model.begin(&mut state, image, 21, 1).unwrap()).collect();
    assert!(items[0].logits().is_err(), "nothing was read");
    let wanted = [Some(3), None, Some(8)];
    let mut reads: Vec<GpuRead<'_>> = items
        .iter_mut()
        .zip(wanted)
        .map(|(item, best)| GpuRead { item, tokens: &[FIRST], best })
        .collect();
    let scores = model.read(&mut state, &mut reads).unwrap();
    for ((image, item), scores) in images.iter().zip(&items).zip(&scores) {
        let expected = alone(&model, image, &[FIRST]);
        match scores {
            GpuScores::Logits(logits) => assert_close(logits, &expected, "all"),
            GpuScores::Best(rows) => {
                assert_close(&item.logits().unwrap(), &expected, "afterwards");
                let (best, value) = rows[0].tokens[0];
                let max = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_close(&[value, expected[best as usize]], &[max, max], "the best");
            }
            GpuScores::NotFinite => panic!("it is finite"),
        }
    }
    assert!(matches!(scores[1], GpuScores::Logits(_)));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let model = model();
    let mut state = model.state().unwrap();
    let image = image(&model, 1, false);
    let mut item = model.begin(&mut state, &image, 3, 2).unwrap();
    let mut other = model.begin(&mut state, &image, 3, 2).unwrap();
    let read = |state: &mut GpuState, item: &mut GpuSlot, tokens: &[u32]| {
        model.read(state, &mut [GpuRead { item, tokens, best: None }]).map(|s| logits(&s))
    };
    assert!(read(&mut state, &mut item, &[]).is_err());
    assert!(read(&mut state, &mut item, &[FIRST; 4]).is_err(), "more than its places");
    assert!(read(&mut state, &mut item, &[80]).is_err(), "not in the vocabulary");
    let first = read(&mut state, &mut item, &[FIRST]).unwrap();
    assert_close(&first, &alone(&model, &image, &[FIRST]), "as if nothing had been");
    assert!(read(&mut state, &mut item, &[1, 2]).is_err(), "it has one row");
    state.clear();
    assert!(read(&mut state, &mut item, &[1]).is_err(), "its state is gone");
    assert!(read(&mut state, &mut other, &[FIRST]).is_err());
    let mut again = model.begin(&mut state, &image, 3, 2).unwrap();
    assert_close(&read(&mut state, &mut again, &[FIRST]).unwrap(), &first, "after all was lost");
}

#[test]
fn towers_take_fewer_of_large_images() {
    let model = model();
    assert_eq!(model.vision_batch(16, 16), 32);
    assert_eq!(model.vision_batch(4096, 4096), 1);
}

//! Times candle-transformers' BLIP in f32 on the CPU, one image at a time, because its decoder does
//! not support batches.
//!
//! `cutline-peer-candle FOLDER NEW_TOKENS ITERATIONS` prints one line of JSON.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::blip::{BlipForConditionalGeneration, Config};

const SIDE: usize = 384;
const START: u32 = 30522;
const END: usize = 102;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, new_tokens, iterations] = arguments.as_slice() else {
        return Err("usage: cutline-peer-candle FOLDER NEW_TOKENS ITERATIONS".into());
    };
    let (new_tokens, iterations): (usize, usize) = (new_tokens.parse()?, iterations.parse()?);
    let mut model = load(Path::new(folder))?;
    let pixels = pixels()?;
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for iteration in 0..=iterations {
        let begin = Instant::now();
        let image = pixels.apply(model.vision_model())?;
        let between = Instant::now();
        decode(&mut model, &image, new_tokens)?;
        let stages = [between - begin, between.elapsed(), begin.elapsed()];
        // The first pass is the warm-up.
        if iteration > 0 {
            times.iter_mut().zip(stages).for_each(|(times, stage)| times.push(stage));
        }
    }
    let [image, decode, whole] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e3
    });
    println!(
        "{}",
        serde_json::json!({"image_ms": image, "decode_ms": decode, "end_to_end_ms": whole})
    );
    Ok(())
}

fn load(folder: &Path) -> Result<BlipForConditionalGeneration, Box<dyn Error>> {
    // candle has a configuration for large only; these are the shapes of base.
    let mut config = Config::image_captioning_large();
    config.text_config.encoder_hidden_size = 768;
    config.vision_config.hidden_size = 768;
    config.vision_config.intermediate_size = 3072;
    config.vision_config.num_hidden_layers = 12;
    config.vision_config.num_attention_heads = 12;
    let mut tensors =
        candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
    // candle does not know that the head shares these; transformers writes them once.
    let tied = [
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ];
    for (head, shared) in tied {
        if let Some(tensor) = tensors.get(&format!("text_decoder.{shared}")).cloned() {
            tensors.entry(format!("text_decoder.{head}")).or_insert(tensor);
        }
    }
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    Ok(BlipForConditionalGeneration::new(&config, weights)?)
}

/// A wave in two directions: the time does not depend on the content of the image.
fn pixels() -> candle_core::Result<Tensor> {
    let value = |n: usize| ((n % SIDE) as f32 / 40.0).sin() + ((n / SIDE) as f32 / 60.0).cos();
    Tensor::from_iter((0..3 * SIDE * SIDE).map(value), &Device::Cpu)?.reshape((1, 3, SIDE, SIDE))
}

/// Decodes exactly `count` tokens, greedily and without the end token.
fn decode(
    model: &mut BlipForConditionalGeneration,
    image: &Tensor,
    count: usize,
) -> candle_core::Result<()> {
    model.reset_kv_cache();
    let mut token = START;
    for _ in 0..count {
        let input = Tensor::new(&[[token]], &Device::Cpu)?;
        let logits = model.text_decoder().forward(&input, image)?;
        let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let best = logits
            .iter()
            .enumerate()
            .filter(|(token, _)| *token != END)
            .max_by(|(_, one), (_, other)| one.total_cmp(other));
        token = best.map_or(START, |(token, _)| token as u32);
    }
    Ok(())
}

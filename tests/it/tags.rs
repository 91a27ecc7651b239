//! The tags path against plain transformers: what the embedded model finds each tag of a vocabulary, in f32,
//! from the bytes of an image to the evidence of the answer. tests/goldens/make_tags.py made the goldens.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;

use cutline::captioner::{Captioner, CaptionerSettings, Photo, TagParams, TagStrategy};
use cutline::engine::{DeviceChoice, EngineOptions, Precision};
use cutline::tags::Vocabulary;
use image::{ImageFormat, RgbImage};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// How far scores may be from those of transformers.
const MOST: f64 = 1e-3;

#[derive(Deserialize)]
struct Goldens {
    vocabulary: Value,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    image: String,
    tags: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    tag: String,
    log_probability: f64,
    log_prior: f64,
    pmi: f64,
}

/// The same formula as in make_tags.py.
fn synthetic(side: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(side, side, |x, y| {
        let level = |c: u32| ((3 * x + 2 * y * (c + 1) + x * y / 8) % 256) as u8;
        image::Rgb([level(0), level(1), level(2)])
    });
    png(image)
}

/// A photograph that was resized already, so that decoders and resampling play no part.
fn photograph(tensors: &SafeTensors<'_>, name: &str) -> Vec<u8> {
    let tensor = tensors.tensor(name).unwrap();
    let [height, width, 3] = tensor.shape() else { panic!("{:?}", tensor.shape()) };
    png(RgbImage::from_raw(*width as u32, *height as u32, tensor.data().to_vec()).unwrap())
}

fn png(image: RgbImage) -> Vec<u8> {
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).unwrap();
    png.into_inner()
}

#[test]
fn tags_have_the_probabilities_that_transformers_gives_them() {
    let goldens = fs::read(format!("{ROOT}/tests/goldens/tags/goldens.json")).unwrap();
    let goldens: Goldens = serde_json::from_slice(&goldens).unwrap();
    let vocabulary = Vocabulary::from_json(&goldens.vocabulary.to_string()).unwrap();
    let settings = CaptionerSettings {
        engine: EngineOptions {
            device: DeviceChoice::Cpu,
            precision: Precision::F32,
            ..EngineOptions::default()
        },
        ..CaptionerSettings::default()
    };
    let params = TagParams {
        strategy: TagStrategy::Likelihood,
        min_score: Some(0.0),
        explain: true,
        unsupported: true,
        ..TagParams::default()
    };
    let tensors = fs::read(format!("{ROOT}/tests/goldens/embedded/goldens.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answers = runtime.block_on(async {
        let captioner = Captioner::load(&settings).unwrap();
        let tagger = captioner.tagger(vocabulary).await.unwrap();
        let mut answers = Vec::new();
        for Answer { image, .. } in &goldens.answers {
            let bytes = match image.as_str() {
                "synthetic" => synthetic(224),
                name => photograph(&tensors, name),
            };
            let photo = Photo::from(bytes);
            answers.push(captioner.tag(photo, &tagger, &params, None).await.unwrap());
        }
        answers
    });
    let (mut compared, mut wrong) = (0, Vec::new());
    for (expected, answer) in goldens.answers.iter().zip(answers) {
        let tags = answer.tags.0.iter().flat_map(|(_, tags)| tags);
        let found: BTreeMap<&str, _> =
            tags.map(|tag| (tag.tag.as_str(), tag.evidence.clone().unwrap())).collect();
        assert_eq!(found.len(), expected.tags.len(), "{}", expected.image);
        for Expected { tag, log_probability, log_prior, pmi } in &expected.tags {
            let evidence = &found[tag.as_str()];
            for (what, value, expected_value) in [
                ("log_probability", evidence.log_probability, log_probability),
                ("log_prior", evidence.log_prior, log_prior),
                ("pmi", evidence.pmi, pmi),
            ] {
                let value = f64::from(value.unwrap());
                if (value - expected_value).abs() >= MOST {
                    let image = &expected.image;
                    wrong.push(format!("{image}: {what} of {tag}: {value}, not {expected_value}"));
                }
                compared += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(compared, 3 * 3 * 13);
}

//! Cache keys and fingerprints: what an answer depends on.

use super::work::Beginning;
use super::{CaptionParams, Captioner, ModelInfo, Recipe};
use crate::cache::{Key, KeyNamespace};
use crate::engine::{Ability, GenerationParams};
use cutline_image::{PREPROCESSING_VERSION, PreprocessConfig};

/// Hexadecimal digits of a fingerprint. 64 bits are enough for the requests of one archive.
const FINGERPRINT_DIGITS: usize = 16;

/// The keys of one model: equal weights, precision, kernels, device and preprocessing.
#[derive(Debug)]
pub(super) struct CaptionKeys(KeyNamespace);

impl CaptionKeys {
    pub(super) fn new(info: &ModelInfo, preprocess: &PreprocessConfig) -> Self {
        Self(KeyNamespace::new(&[
            &info.digest,
            &info.precision,
            // Kernels and devices round differently.
            &info.kernels,
            &info.device,
            &PREPROCESSING_VERSION.to_string(),
            // Size, resampling and normalisation.
            &format!("{preprocess:?}"),
        ]))
    }

    /// The keys of answers that servers share. Those of different versions share nothing, because a
    /// version may change what a parameter means.
    #[cfg(feature = "redis")]
    pub(super) fn shared(
        captioner: &super::CaptionerInner,
        scope: crate::cache::CacheScope,
    ) -> Self {
        let super::CaptionerInner { info, extras, preprocess, .. } = captioner;
        let gpu = info.gpu.as_ref().map_or("", |gpu| gpu.name.as_str());
        let machine = match scope {
            // Of a device, only its kind counts: equal GPUs are not told apart.
            crate::cache::CacheScope::Exact => [info.kernels.as_str(), gpu],
            crate::cache::CacheScope::Model => [""; 2],
        };
        Self(KeyNamespace::new(&[
            env!("CARGO_PKG_VERSION"),
            &info.digest,
            &info.precision,
            machine[0],
            machine[1],
            &PREPROCESSING_VERSION.to_string(),
            &format!("{preprocess:?}"),
            // It is not part of the digest, and changes the confidences.
            &format!("{:?}", extras.confidence),
        ]))
    }

    /// The key of the vision tower's output for the image with this hash.
    pub(super) fn vision(&self, image: &blake3::Hash) -> Key {
        self.0.key("vision", &[image.as_bytes()])
    }

    /// The key of what the model expects of these texts after a prompt without seeing a photo.
    pub(super) fn priors(&self, prompt: &[u32], texts: &[Vec<u32>]) -> Key {
        let mut hasher = blake3::Hasher::new();
        for ids in std::iter::once(prompt).chain(texts.iter().map(Vec::as_slice)) {
            hasher.update(&(ids.len() as u64).to_le_bytes());
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
        self.0.key("priors", &[hasher.finalize().as_bytes()])
    }

    /// The key of an answer of a model elsewhere; `asked` says who was asked for what.
    pub(super) fn foreign(
        &self,
        image: &blake3::Hash,
        asked: &str,
        recipe: Option<&Recipe>,
    ) -> Key {
        let recipe = recipe.map(Recipe::key).unwrap_or_default();
        self.0.key("elsewhere", &[image.as_bytes(), asked.as_bytes(), recipe.as_bytes()])
    }

    /// The key of the answer for the image with this hash; `None` for sampling without a seed,
    /// which gives a different answer each time.
    pub(super) fn answer(
        &self,
        image: &blake3::Hash,
        begin_with: &Beginning,
        params: &GenerationParams,
        recipe: Option<&Recipe>,
    ) -> Option<Key> {
        if params.do_sample && params.seed.is_none() {
            return None;
        }
        let bytes = |ids: &[u32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        let (prompt, question) = (bytes(&begin_with.prompt), bytes(&begin_with.question));
        // The debug format lists all fields by name, so a new field changes keys without an edit
        // here. Rust prints enough digits to tell every float from every other.
        let params = format!("{:?}", params.canonical());
        // Two versions of a prompt never share an answer, even if they say the same.
        let recipe = recipe.map(Recipe::key).unwrap_or_default();
        let parts =
            [image.as_bytes().as_slice(), &prompt, params.as_bytes(), &question, recipe.as_bytes()];
        Some(self.0.key("answer", &parts))
    }
}

/// [`Captioner::fingerprint`] of a model elsewhere.
pub(super) fn fingerprint_elsewhere(asked: &str, recipe: Option<&Recipe>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("cutline 2026-12 fingerprint elsewhere");
    hasher.update(asked.as_bytes());
    if let Some(recipe) = recipe {
        hasher.update(recipe.key().as_bytes());
    }
    shown(&hasher)
}

fn shown(hasher: &blake3::Hasher) -> String {
    let mut digits = hasher.finalize().to_hex().to_string();
    digits.truncate(FINGERPRINT_DIGITS);
    digits
}

impl Captioner {
    /// A short hash of model, precision, input size and parameters. Equal fingerprints mean equal
    /// texts for the same photo. Unlike a cache key it leaves out kernels and device, so that work
    /// begun on one machine can continue on another, where the odd word may differ.
    #[must_use]
    pub fn fingerprint(&self, params: &CaptionParams) -> String {
        let info = self.info();
        let params = params.with_defaults(&info.generation);
        let mut hasher = blake3::Hasher::new_derive_key("cutline 2026-11 fingerprint");
        for part in [
            info.digest.as_str(),
            &info.precision,
            &format!("{PREPROCESSING_VERSION} {:?}", info.input_size),
            &format!("{:?}", params.prompt),
            // All fields by name, so that a new field counts without an edit here.
            // They do not change a text.
            &format!(
                "{:?}",
                GenerationParams { alternatives: 0, ..params.generation().canonical() }
            ),
            // As it was before there were emoji, so that work begun then can continue.
            &format!("{:?}", params.text_style()).replace("emoji: false, ", ""),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        if let Some(recipe) = &params.recipe {
            hasher.update(recipe.key().as_bytes());
        }
        if params.rerank {
            let scorer = self.able(Ability::Score).map_or("", |scorer| &scorer.info().digest);
            hasher.update(b"rerank").update(scorer.as_bytes());
        }
        shown(&hasher)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn after(prompt: &[u32]) -> Beginning {
        Beginning { prompt: prompt.to_vec(), question: Vec::new() }
    }

    fn keys() -> CaptionKeys {
        CaptionKeys(KeyNamespace::new(&["model"]))
    }

    fn recipe(name: &str, digest: &str) -> Recipe {
        let version = super::super::RecipeVersion {
            id: 1,
            name: name.into(),
            digest: digest.into(),
            content: cutline_prompts::Content::new(cutline_prompts::Kind::Chain, "{{ caption }}"),
            experiment: None,
        };
        let params = CaptionParams::default().with_recipe(version, serde_json::Map::new());
        (*params.unwrap().recipe.unwrap()).clone()
    }

    #[test]
    fn everything_that_changes_an_answer_changes_its_key() {
        let base = GenerationParams { do_sample: true, seed: Some(1), ..Default::default() };
        let one = blake3::hash(b"one");
        let with = |change: fn(&mut GenerationParams)| {
            let mut params = base.clone();
            change(&mut params);
            keys().answer(&one, &after(&[]), &params, None).unwrap()
        };
        let all = [
            with(|_| {}),
            keys().answer(&blake3::hash(b"two"), &after(&[]), &base, None).unwrap(),
            keys().answer(&one, &after(&[5]), &base, None).unwrap(),
            keys().answer(&one, &after(&[5, 6]), &base, None).unwrap(),
            keys().answer(&one, &after(&[]), &base, Some(&recipe("a:1", "x"))).unwrap(),
            keys().answer(&one, &after(&[]), &base, Some(&recipe("a:2", "x"))).unwrap(),
            keys().answer(&one, &after(&[]), &base, Some(&recipe("a:1", "y"))).unwrap(),
            keys()
                .answer(&one, &Beginning { question: vec![5], ..Default::default() }, &base, None)
                .unwrap(),
            keys().foreign(&one, "box a", None),
            keys().foreign(&one, "box b", None),
            keys().foreign(&one, "box a", Some(&recipe("a:1", "x"))),
            keys().foreign(&one, "box a", Some(&recipe("a:2", "x"))),
            keys().foreign(&blake3::hash(b"two"), "box a", None),
            keys().vision(&one),
            keys().vision(&blake3::hash(b"two")),
            with(|p| p.max_new_tokens = 7),
            with(|p| p.min_new_tokens = 7),
            with(|p| p.num_beams = 7),
            with(|p| p.num_return_sequences = 7),
            with(|p| p.length_penalty = 0.7),
            with(|p| p.repetition_penalty = 1.000_000_1),
            with(|p| p.no_repeat_ngram_size = 7),
            with(|p| p.temperature = 0.7),
            with(|p| p.top_k = 7),
            with(|p| p.top_p = 0.7),
            with(|p| p.seed = Some(7)),
            with(|p| p.alternatives = 7),
        ];
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "two keys are the same");
    }

    #[test]
    fn unused_parameters_do_not_count_and_unseeded_sampling_has_no_key() {
        let image = blake3::hash(b"image");
        let greedy = GenerationParams::default();
        let seeded = GenerationParams { seed: Some(1), temperature: 0.5, ..greedy.clone() };
        let key = |params| keys().answer(&image, &after(&[]), params, None);
        assert_eq!(key(&greedy), key(&seeded));
        let unseeded = GenerationParams { do_sample: true, ..greedy };
        assert_eq!(key(&unseeded), None);
    }
}

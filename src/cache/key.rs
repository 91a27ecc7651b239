//! What a cached value depends on.

use crate::engine::GenerationParams;

/// Stands for everything that a value depends on: equal keys, equal values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// Everything beside the request that decides what an image's answer is: which weights, computed
/// how, on what pixels.
#[derive(Debug, Clone)]
pub struct Identity(blake3::Hasher);

impl Identity {
    /// From words for the model's digest, its precision, its kernels, and the preprocessing with
    /// its version and size.
    #[must_use]
    pub fn new(parts: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("cutline 2026-11 cache key");
        add(&mut hasher, &(parts.len() as u64).to_le_bytes());
        parts.iter().for_each(|part| add(&mut hasher, part.as_bytes()));
        Self(hasher)
    }

    /// The key of what the vision tower makes of the image with this hash.
    #[must_use]
    pub fn vision(&self, image: &blake3::Hash) -> Key {
        self.key("vision", image, &[])
    }

    /// The key of the answer for the image with this hash; `None` when the answer is another one
    /// each time, because sampling has no seed.
    #[must_use]
    pub fn answer(
        &self,
        image: &blake3::Hash,
        prompt: &[u32],
        params: &GenerationParams,
    ) -> Option<Key> {
        if params.do_sample && params.seed.is_none() {
            return None;
        }
        let prompt: Vec<u8> = prompt.iter().flat_map(|id| id.to_le_bytes()).collect();
        // All fields by their names, so that one that is added later counts without a change here.
        // Rust prints a float with as many digits as tell it from every other.
        let params = format!("{:?}", params.canonical());
        Some(self.key("answer", image, &[&prompt, params.as_bytes()]))
    }

    fn key(&self, purpose: &str, image: &blake3::Hash, rest: &[&[u8]]) -> Key {
        let mut hasher = self.0.clone();
        add(&mut hasher, purpose.as_bytes());
        add(&mut hasher, image.as_bytes());
        rest.iter().for_each(|part| add(&mut hasher, part));
        Key(*hasher.finalize().as_bytes())
    }
}

/// With its length, so that no two lists of parts run together to the same bytes.
fn add(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_changes_an_answer_changes_its_key() {
        let base = GenerationParams { do_sample: true, seed: Some(1), ..Default::default() };
        let one = blake3::hash(b"one");
        let model = Identity::new(&["digest", "f32", "avx2"]);
        let with = |change: fn(&mut GenerationParams)| {
            let mut params = base.clone();
            change(&mut params);
            model.answer(&one, &[], &params).unwrap()
        };
        let mut keys = vec![
            with(|_| {}),
            model.answer(&blake3::hash(b"two"), &[], &base).unwrap(),
            model.answer(&one, &[5], &base).unwrap(),
            model.answer(&one, &[5, 6], &base).unwrap(),
            model.vision(&one),
            Identity::new(&["digest", "bf16", "avx2"]).answer(&one, &[], &base).unwrap(),
            Identity::new(&["digest", "f32avx2", ""]).answer(&one, &[], &base).unwrap(),
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
        ];
        let all = keys.len();
        keys.sort_by_key(|key| key.0);
        keys.dedup();
        assert_eq!(keys.len(), all, "two of them are the same");
    }

    #[test]
    fn what_changes_nothing_does_not_count_and_chance_has_no_key() {
        let image = blake3::hash(b"image");
        let model = Identity::new(&[]);
        let greedy = GenerationParams::default();
        let seeded = GenerationParams { seed: Some(1), temperature: 0.5, ..greedy.clone() };
        assert_eq!(model.answer(&image, &[], &greedy), model.answer(&image, &[], &seeded));
        let chance = GenerationParams { do_sample: true, ..greedy };
        assert_eq!(model.answer(&image, &[], &chance), None);
    }
}

//! Decoding: what to write next, given the model's logits. Plain slices, no tensors.

pub mod params;

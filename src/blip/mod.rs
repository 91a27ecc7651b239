//! BLIP on candle.

pub mod weights;

//! BLIP on candle.

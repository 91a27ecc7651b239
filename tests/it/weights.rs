//! Tests: weights.

//! Tests: parity.

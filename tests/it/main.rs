//! Integration tests, one crate.

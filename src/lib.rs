//! cutline
pub mod error;

//! From image bytes to pixel values.

//! The use case: an image and parameters in, a caption out.

//! The queue and the one thread that owns the model.

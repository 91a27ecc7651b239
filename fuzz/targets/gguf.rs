#![no_main]

cutline_fuzz::target!(cutline_fuzz::models::gguf, cutline_fuzz::models::gguf_seeds);

#![no_main]

cutline_fuzz::target!(cutline_fuzz::models::safetensors, cutline_fuzz::models::safetensors_seeds);

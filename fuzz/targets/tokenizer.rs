#![no_main]

cutline_fuzz::target!(cutline_fuzz::models::tokenizer, cutline_fuzz::models::tokenizer_seeds);

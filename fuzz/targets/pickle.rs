#![no_main]

cutline_fuzz::target!(cutline_fuzz::models::pickle, cutline_fuzz::models::pickle_seeds);

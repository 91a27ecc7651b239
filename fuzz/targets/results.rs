#![no_main]

cutline_fuzz::target!(cutline_fuzz::files::results, cutline_fuzz::files::results_seeds);

#![no_main]

cutline_fuzz::target!(
    cutline_fuzz::files::results_written,
    cutline_fuzz::files::results_written_seeds
);

#![no_main]

cutline_fuzz::target!(cutline_fuzz::files::references, cutline_fuzz::files::references_seeds);

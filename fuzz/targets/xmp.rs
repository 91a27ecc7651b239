#![no_main]

cutline_fuzz::target!(cutline_fuzz::files::xmp, cutline_fuzz::files::xmp_seeds);

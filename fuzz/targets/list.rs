#![no_main]

cutline_fuzz::target!(cutline_fuzz::files::list, cutline_fuzz::files::list_seeds);

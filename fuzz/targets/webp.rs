#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::webp, cutline_fuzz::images::webp_seeds);

#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::avif, cutline_fuzz::images::avif_seeds);

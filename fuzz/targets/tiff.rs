#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::tiff, cutline_fuzz::images::tiff_seeds);

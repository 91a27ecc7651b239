#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::bmp, cutline_fuzz::images::bmp_seeds);

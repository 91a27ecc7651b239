#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::png, cutline_fuzz::images::png_seeds);

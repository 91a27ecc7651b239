#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::jpeg, cutline_fuzz::images::jpeg_seeds);

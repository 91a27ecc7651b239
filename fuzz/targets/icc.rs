#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::icc, cutline_fuzz::images::icc_seeds);

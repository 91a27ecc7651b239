#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::gif, cutline_fuzz::images::gif_seeds);

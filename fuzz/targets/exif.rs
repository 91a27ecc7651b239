#![no_main]

cutline_fuzz::target!(cutline_fuzz::images::exif, cutline_fuzz::images::exif_seeds);

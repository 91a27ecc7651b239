#![no_main]

cutline_fuzz::target!(cutline_fuzz::requests::base64, cutline_fuzz::requests::base64_seeds);

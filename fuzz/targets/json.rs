#![no_main]

cutline_fuzz::target!(cutline_fuzz::requests::json, cutline_fuzz::requests::json_seeds);

#![no_main]

cutline_fuzz::target!(cutline_fuzz::requests::request, cutline_fuzz::requests::request_seeds);

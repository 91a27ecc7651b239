#![no_main]

cutline_fuzz::target!(cutline_fuzz::requests::multipart, cutline_fuzz::requests::multipart_seeds);

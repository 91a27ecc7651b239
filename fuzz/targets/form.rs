#![no_main]

cutline_fuzz::target!(cutline_fuzz::requests::form, cutline_fuzz::requests::form_seeds);

#![no_main]

cutline_fuzz::target!(cutline_fuzz::models::folder, cutline_fuzz::models::folder_seeds);

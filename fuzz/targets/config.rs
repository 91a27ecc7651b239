#![no_main]

cutline_fuzz::target!(cutline_fuzz::models::config, cutline_fuzz::models::config_seeds);

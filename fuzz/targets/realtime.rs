#![no_main]

cutline_fuzz::target!(cutline_fuzz::requests::realtime, cutline_fuzz::requests::realtime_seeds);

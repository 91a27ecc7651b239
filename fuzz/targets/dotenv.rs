#![no_main]

cutline_fuzz::target!(cutline_fuzz::files::dotenv, cutline_fuzz::files::dotenv_seeds);

//! The HTTP contract, against a captioner whose engine is scripted.

mod fixture;
mod process;
mod protocol;
mod states;
mod tcp;
mod uploads;

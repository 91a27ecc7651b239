//! The HTTP contract, against a captioner whose engine is scripted.

mod fixture;
mod protocol;
mod states;
mod tcp;
mod uploads;

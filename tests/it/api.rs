//! The HTTP contract, against a captioner whose engine is scripted.

mod batch;
mod cache;
mod deploy;
mod fixture;
mod floods;
mod metrics;
mod openapi;
mod page;
mod process;
mod protocol;
mod states;
mod stream;
mod tcp;
mod uploads;

//! The HTTP contract, against a captioner whose engine is scripted.

mod auth;
mod batch;
mod cache;
mod cors;
mod deploy;
mod fixture;
mod floods;
mod metrics;
mod openapi;
mod page;
mod process;
mod protocol;
mod rate;
mod states;
mod stream;
mod tcp;
mod uploads;

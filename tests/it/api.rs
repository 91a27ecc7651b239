//! The HTTP contract, against a captioner whose engine is scripted.

mod auth;
mod batch;
mod cache;
mod coding;
mod cors;
mod deploy;
mod fields;
mod fixture;
mod floods;
mod forms;
#[cfg(feature = "grpc")]
mod grpc;
mod huggingface;
mod keys;
mod kserve;
mod library;
mod mcp;
mod metrics;
mod ollama;
mod openai;
mod openapi;
mod page;
mod process;
mod prompts;
mod protocol;
mod rate;
mod realtime;
mod routes;
#[cfg(feature = "redis")]
mod shared;
mod states;
mod stream;
mod tags;
mod tcp;
mod texts;
mod uploads;
mod urls;
mod vocabularies;

//! Fuzz targets. Each is a function from bytes to a verdict, with the inputs that it starts from.
//!
//! - [`images`]: every format, EXIF, colour profiles;
//! - [`requests`]: multipart, JSON, forms, base64, whole requests;
//! - [`files`]: earlier results, references, XMP, lists of paths, `.env`;
//! - [`models`]: configurations, tokenizers, weights.
//!
//! A finding is a panic in this repository, a panic anywhere that is not caught, a broken property,
//! memory beyond the limit of the target, or an input that takes seconds. Decoders of other projects
//! may panic where the program catches it.

pub mod files;
pub mod images;
pub mod models;
pub mod requests;
mod seeds;

use std::alloc::System;
use std::backtrace::Backtrace;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::time::Duration;

use cap::Cap;
use cpu_time::ThreadTime;

pub use libfuzzer_sys::Corpus;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// The longest that one input may take. Time of this thread on a CPU, so that a busy machine makes no
/// findings.
const MAX_TIME: Duration = Duration::from_secs(5);

/// Inputs to start from, each with a name.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// Makes a fuzz target of a function and the function that makes its seeds.
#[macro_export]
macro_rules! target {
    ($run:path, $seeds:path) => {
        libfuzzer_sys::fuzz_target!(init: $crate::start($seeds), |data: &[u8]| -> $crate::Corpus {
            $crate::measured(data, $run)
        });
    };
}

/// Prepares the process; with `CUTLINE_SEEDS=FOLDER` it writes the seeds there and ends it.
pub fn start(seeds: fn() -> Seeds) {
    if let Some(folder) = std::env::var_os("CUTLINE_SEEDS") {
        seeds::write(folder.as_ref(), &seeds());
        process::exit(0);
    }
    // libFuzzer's hook ends the process at every panic, also at one that the program would catch.
    panic::set_hook(Box::new(|panic| {
        ALLOCATOR.set_limit(usize::MAX).expect("this is above what is allocated");
        eprintln!("{panic}");
        let elsewhere = |file: &str| file.contains("/registry/src/") || file.contains("/rustc/");
        if !panic.location().is_some_and(|location| elsewhere(location.file())) {
            eprintln!("{}", Backtrace::force_capture());
            process::abort();
        }
    }));
}

/// Runs the target and checks the time that it takes.
pub fn measured(data: &[u8], run: fn(&[u8]) -> Corpus) -> Corpus {
    let begin = ThreadTime::now();
    let verdict = run(data);
    let time = begin.elapsed();
    assert!(time < MAX_TIME, "an input of {} bytes took {time:?}", data.len());
    verdict
}

/// Runs `work`, in which no more than `bytes` may be allocated at a time. Memory of C libraries does not
/// count.
fn bounded<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let limit = |limit| ALLOCATOR.set_limit(limit).expect("the limit is above what is allocated");
    limit(ALLOCATOR.allocated().saturating_add(bytes));
    let result = work();
    limit(usize::MAX);
    result
}

/// Runs `work`, whose dependencies may panic because the program catches it; `None` if they did.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).ok()
}

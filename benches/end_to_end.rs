//! From a photo's bytes to its caption, on the same path as a request.

mod common;

use std::error::Error;

use criterion::BenchmarkId;
use cutline::captioner::{CaptionParams, Captioner};

fn main() -> Result<(), Box<dyn Error>> {
    let captioner = Captioner::load(&common::settings()?)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut criterion = common::criterion();
    let mut group = criterion.benchmark_group("caption");
    for name in ["cat", "coffee"] {
        let bytes = common::photo(name)?;
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                runtime.block_on(captioner.caption(bytes.clone(), CaptionParams::default()))
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

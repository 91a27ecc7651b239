//! Bytes of a JPEG to the pixels that the model reads.

mod common;

use std::error::Error;
use std::hint::black_box;

use criterion::{BenchmarkId, Throughput};
use cutline::image::{DecodeLimits, PreprocessConfig, decode};

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = common::criterion();
    let mut group = criterion.benchmark_group("preprocess");
    let (limits, config) = (DecodeLimits::default(), PreprocessConfig::default());
    for name in common::PHOTOS {
        let bytes = common::photo(name)?;
        let decoded = decode(&bytes, &limits)?;
        group.throughput(Throughput::Elements((decoded.width * decoded.height) as u64));
        group.bench_function(BenchmarkId::new("decode", name), |bencher| {
            bencher.iter(|| decode(black_box(&bytes), &limits));
        });
        group.bench_function(BenchmarkId::new("resize and normalise", name), |bencher| {
            bencher.iter(|| config.preprocess(black_box(&decoded)));
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

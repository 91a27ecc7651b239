//! From the bytes of a JPEG to the model's input, and to the photo's colours.

mod common;

use std::error::Error;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use cutline::image::{Colors, DecodeLimits, Measures, PreprocessConfig, decode, decode_for};

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
    sizes(&mut criterion)?;
    large(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

/// All work on a photo before the model, colours and mood included, on one core. The result tells
/// how many cores keep up with a model.
fn sizes(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let (limits, config) = (DecodeLimits::default(), PreprocessConfig::default());
    let mut group = criterion.benchmark_group("photo to input");
    for (width, height) in [(816, 612), (1632, 1224), (4000, 3000)] {
        let bytes = common::camera_photo(width, height)?;
        let name = format!("{width} × {height}, {} KB", bytes.len() / 1000);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                let photo = decode_for(black_box(&bytes), &limits, config.width, config.height)?;
                Ok::<_, cutline::error::Error>((Colors::of(&photo), config.preprocess(&photo)?))
            });
        });
    }
    group.finish();
    Ok(())
}

/// A photo of 12 megapixels: the exact decoder with Pillow's samples (`decode`), the decoder for
/// the model's input (`decode for 384`), and the later stages.
fn large(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let bytes = common::camera_photo(4000, 3000)?;
    println!("the large photo has {} bytes", bytes.len());
    let (limits, config) = (DecodeLimits::default(), PreprocessConfig::default());
    let (width, height) = (config.width, config.height);
    let decoded = decode_for(&bytes, &limits, width, height)?;
    let mut group = criterion.benchmark_group("12 megapixels");
    group.throughput(Throughput::Elements((decoded.width * decoded.height) as u64));
    group.bench_function("decode", |bencher| bencher.iter(|| decode(black_box(&bytes), &limits)));
    group.bench_function("decode for 384", |bencher| {
        bencher.iter(|| decode_for(black_box(&bytes), &limits, width, height));
    });
    group.bench_function("decode for 384, resize and normalise", |bencher| {
        bencher.iter(|| {
            decode_for(black_box(&bytes), &limits, width, height)
                .and_then(|image| config.preprocess(&image))
        });
    });
    group.bench_function("colours and mood", |bencher| {
        bencher.iter(|| Colors::of(black_box(&decoded)));
    });
    group.bench_function("brightness, contrast, sharpness, colourfulness", |bencher| {
        bencher.iter(|| Measures::of(black_box(&decoded)));
    });
    group.finish();
    Ok(())
}

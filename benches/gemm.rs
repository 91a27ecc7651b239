//! Products of BLIP's shapes on the best kernels of this CPU. An element of the throughput is a
//! floating-point operation, so criterion's Gelem/s are GFLOP/s.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cutline::kernels::Tier;
use cutline::kernels::bench::Product;

/// Rows, depth and width of the base model: vision tower, one token, a batch of tokens.
const SHAPES: [(usize, usize, usize); 6] = [
    (577, 768, 2304),
    (577, 768, 768),
    (577, 768, 3072),
    (577, 3072, 768),
    (1, 768, 3072),
    (16, 768, 3072),
];

fn products(criterion: &mut Criterion) {
    for precision in ["f32", "bf16", "int8"] {
        let mut group = criterion.benchmark_group(format!("gemm/{precision}"));
        group.sample_size(20).warm_up_time(std::time::Duration::from_millis(200));
        group.measurement_time(std::time::Duration::from_millis(600));
        for shape in SHAPES {
            let (rows, depth, width) = shape;
            group.throughput(Throughput::Elements((2 * rows * depth * width) as u64));
            let name = format!("{}/{rows}x{depth}x{width}", Tier::best());
            let mut product = Product::new(Tier::best(), precision, shape);
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| product.run(1));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);

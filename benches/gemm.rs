//! Products of BLIP's shapes with the best kernels of this CPU. An element of the throughput is a
//! floating-point operation, so criterion's Gelem/s are GFLOP/s.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cutline::kernels::activations::Activations;
use cutline::kernels::gemm::{Epilogue, linear};
use cutline::kernels::packed_weights::PackedWeights;
use cutline::kernels::thread_pool::with_thread_pool;
use cutline::kernels::{Isa, Precision};

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
    let precisions =
        [("f32", Precision::F32), ("bf16", Precision::Bf16), ("int8", Precision::Int8)];
    for (name, precision) in precisions {
        let mut group = criterion.benchmark_group(format!("gemm/{name}"));
        group.sample_size(20).warm_up_time(std::time::Duration::from_millis(200));
        group.measurement_time(std::time::Duration::from_millis(600));
        for (rows, depth, width) in SHAPES {
            group.throughput(Throughput::Elements((2 * rows * depth * width) as u64));
            let isa = Isa::best();
            let number = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
            let weight: Vec<f32> = (0..width * depth).map(number).collect();
            let x: Vec<f32> = (0..rows * depth).map(|i| number(i / depth + i % depth)).collect();
            let weights = PackedWeights::new(isa, precision, &weight, &vec![0.5; width], depth);
            let (mut activations, mut out) = (Activations::default(), vec![0.0; rows * width]);
            with_thread_pool(|pool| activations.copy_from(pool, &weights, &x));
            let name = format!("{isa}/{rows}x{depth}x{width}");
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| {
                    with_thread_pool(|pool| {
                        linear(pool, &activations, &weights, &mut out, Epilogue::STORE);
                    });
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);

//! The allocations of a decode step. The test has its own process because it counts all
//! allocations.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe to write")]
#![allow(missing_docs, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use cutline::blip::cpu::CpuWeights;
use cutline::blip::{BlipConfig, SlotSize, Weights};
use cutline::kernels::{Precision, Tier};

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory comes from the system's allocator; only counters are added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls and bytes while `work` runs.
fn counted(work: impl FnOnce()) -> (usize, usize) {
    let before = (CALLS.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst));
    work();
    (CALLS.load(Ordering::SeqCst) - before.0, BYTES.load(Ordering::SeqCst) - before.1)
}

/// A pass sends a few words to each of rayon's threads; nothing else may be allocated.
fn calling_threads() -> (usize, usize) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    (8 + 4 * threads, 512 + 512 * threads)
}

#[test]
fn a_token_and_a_second_image_allocate_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tied");
    let config =
        BlipConfig::from_json(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let weights = Weights::from_files(&[folder.join("model.safetensors")]).unwrap();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let model = CpuWeights::load(&config, &weights, Tier::best(), precision).unwrap();
        let work = &mut model.new_workspace();
        let (side, tokens) = (config.vision.image_size, 12);
        let pixels = vec![0.25; 3 * side * side];
        let most = calling_threads();
        let within = |(calls, bytes): (usize, usize)| calls <= most.0 && bytes <= most.1;
        for image in 0..3 {
            let encoded = model.encode(work, &pixels, side, side).unwrap();
            let mut slot = None;
            let begin = counted(|| {
                slot = Some(model.begin(work, &encoded, SlotSize::new(tokens, 1)).unwrap())
            });
            let mut slot = slot.unwrap();
            assert!(image == 0 || within(begin), "{precision:?} image {image}: {begin:?}");
            model.prefill(work, &mut slot, &[3]).unwrap();
            model.step(work, &mut [&mut slot], &[4]).unwrap();
            for token in 2..tokens as u32 {
                let step = counted(|| {
                    model.step(work, &mut [&mut slot], &[token]).unwrap();
                });
                // In one of these steps the first image gets its keys and values.
                assert!(
                    image == 0 || within(step),
                    "{precision:?} image {image}, token {token}: {step:?}, at most {most:?}"
                );
            }
            work.recycle(slot);
        }
    }
}

//! The peak memory of decoding an image, whatever its bytes are. It has its own process because it counts
//! all allocations.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe to write")]
#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cutline::error::ErrorKind;
use cutline::image::{
    Colors, DecodeLimits, ImageHeader, Measures, PreprocessConfig, decode, decode_for,
};
use image::{ExtendedColorType, ImageFormat};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: all calls go to the system's allocator; only counters are added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller guarantees the contract of this method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller guarantees the contract of this method.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller guarantees the contract of this method.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The peak of allocated bytes while `work` ran, beyond those allocated before.
fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let result = work();
    (PEAK.load(Ordering::SeqCst).saturating_sub(before), result)
}

/// The pixel limit of this test: small, so that allocations beyond it are visible.
const MAX_PIXELS: u64 = 40_000;

/// A pixel has up to 8 bytes, of which a decoder may hold three copies, and there are 64 MiB for
/// tables, metadata and rows. Allocations of libjpeg in C are not counted; they depend only on the
/// image size, which is checked before.
const MAX_MEMORY: usize = MAX_PIXELS as usize * 24 + (64 << 20);

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// Every file of the zoo, including the refused ones.
fn zoo() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/image");
    let mut found = Vec::new();
    files(&root.join("zoo"), &mut found);
    files(&root.join("refused"), &mut found);
    found.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

/// A change to a file's bytes.
#[derive(Debug, Clone)]
enum Change {
    /// Flips one bit.
    Flip(prop::sample::Index, u8),
    /// Changes one of the first two hundred bytes, where the structure is.
    Head(prop::sample::Index, u8),
    /// Replaces four bytes by a large number: a length, a size or an offset.
    Length(prop::sample::Index, u32),
    /// Cuts the file off.
    Cut(prop::sample::Index),
    /// Repeats a piece.
    Repeat(prop::sample::Index, prop::sample::Index),
    /// Replaces the end by that of another file.
    Graft(prop::sample::Index, prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), 0..8_u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        4 => (index(), any::<u8>()).prop_map(|(at, value)| Change::Head(at, value)),
        2 => (index(), any::<u32>()).prop_map(|(at, value)| Change::Length(at, value)),
        1 => index().prop_map(Change::Cut),
        1 => (index(), index()).prop_map(|(from, to)| Change::Repeat(from, to)),
        1 => (index(), index(), index()).prop_map(|(file, from, at)| Change::Graft(file, from, at)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change, zoo: &[(String, Vec<u8>)]) {
    let length = bytes.len();
    if length < 8 {
        return;
    }
    match change {
        Change::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
        Change::Head(at, value) => bytes[at.index(length.min(200))] = *value,
        Change::Length(at, value) => {
            let at = at.index(length - 3);
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        Change::Cut(at) => bytes.truncate(at.index(length)),
        Change::Repeat(from, to) => {
            let (from, to) = (from.index(length), to.index(length));
            let piece = bytes[from.min(to)..from.max(to)].to_vec();
            bytes.splice(from..from, piece);
        }
        Change::Graft(file, from, at) => {
            let (_, other) = &zoo[file.index(zoo.len())];
            bytes.truncate(at.index(length));
            bytes.extend_from_slice(&other[from.index(other.len().max(1)).min(other.len())..]);
        }
    }
}

thread_local! {
    static WORST: Cell<usize> = const { Cell::new(0) };
}

/// What is promised for an image of any size.
const FIXED: usize = 24 << 20;

/// The memory that a header may take, whatever it says.
const HEADER_MEMORY: usize = 200_000;

/// What the header promises; `None` if it is refused.
fn promised(name: &str, bytes: &[u8], limits: &DecodeLimits) -> Option<usize> {
    let (most, header) = peak(|| ImageHeader::read(bytes, limits));
    assert!(most <= HEADER_MEMORY, "{name}: {most} bytes for the header");
    header.ok().map(|header| usize::try_from(header.peak_bytes).unwrap())
}

/// Decodes with both decoders and checks results, errors and peak memory.
fn check(name: &str, bytes: &[u8]) {
    let limits = DecodeLimits { max_pixels: MAX_PIXELS, ..DecodeLimits::default() };
    let promised = promised(name, bytes, &limits);
    let (most, result) = peak(|| decode(bytes, &limits));
    WORST.set(WORST.get().max(most));
    assert!(
        result.is_err() || promised.is_some(),
        "{name}: decoded although its header is refused"
    );
    // One byte of a TIFF field becomes up to 32 bytes.
    let allowed = (MAX_MEMORY + 32 * bytes.len()).min(promised.unwrap_or(HEADER_MEMORY));
    assert!(most <= allowed, "{name}: {most} bytes, at most {allowed} are allowed");
    match result {
        Ok(image) => {
            assert!(image.width > 0 && image.height > 0, "{name}");
            assert_eq!(image.rgb.len(), 3 * image.width * image.height, "{name}");
            assert!((1..=8).contains(&image.orientation), "{name}");
            assert!(!Colors::of(&image).colors.is_empty(), "{name}");
            Measures::of(&image).unwrap();
        }
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::ImageTooLarge
                    | ErrorKind::UnsupportedFormat
                    | ErrorKind::UndecodableImage
            ),
            "{name}: {error:?}"
        ),
    }
    // The faster decoder, for images that are scaled down a lot.
    let (most, _) = peak(|| decode_for(bytes, &limits, 4, 4));
    assert!(most <= allowed, "{name}, faster: {most} bytes, at most {allowed} are allowed");
}

/// Tests count the allocations of the whole process, so only one may run at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // A backtrace of a panic that is caught would count.
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
    guard
}

#[test]
fn no_bytes_take_more_memory_than_the_limits_allow() {
    let _alone = alone();
    let zoo = zoo();
    assert!(zoo.len() > 110, "files are missing: {}", zoo.len());
    for (name, bytes) in &zoo {
        check(name, bytes);
    }
    println!("whole files: {} bytes at most", WORST.get());
    let config = ProptestConfig { cases: 20_000, failure_persistence: None, ..Default::default() };
    let changes = (any::<prop::sample::Index>(), prop::collection::vec(change(), 1..10));
    TestRunner::new(config)
        .run(&changes, |(file, changes)| {
            let (name, mut bytes) = zoo[file.index(zoo.len())].clone();
            for change in &changes {
                apply(&mut bytes, change, &zoo);
            }
            check(&name, &bytes);
            Ok(())
        })
        .unwrap();
    println!("changed files: {} bytes at most", WORST.get());
}

fn boxed(name: &[u8; 4], content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    [&u32::try_from(content.len() + 8).unwrap().to_be_bytes()[..], name, &content].concat()
}

/// The bytes of a file may be named many times.
#[test]
fn tiles_with_the_same_bytes_take_no_more_memory() {
    let _alone = alone();
    const DATA: u32 = 1 << 20;
    let side = 1024_u16.to_be_bytes();
    let grid = [&[0, 0, 15, 15][..], &side, &side].concat();
    let tiles: Vec<u8> = (0..256).flat_map(|_| [0, 2]).collect();
    let item = |id: u8, kind: &[u8; 4]| boxed(b"infe", &[&[2, 0, 0, 0, 0, id, 0, 0], kind, &[0]]);
    // Item 2 has two parts, which are the same.
    let half = (DATA / 2).to_be_bytes();
    let extents = [&[0; 4][..], &half, &[0; 4], &half].concat();
    let locations: [&[u8]; 4] = [
        &[1, 0, 0, 0, 0x44, 0, 0, 2],
        &[0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8],
        &[0, 2, 0, 0, 0, 0, 0, 2],
        &extents,
    ];
    let size = boxed(b"ispe", &[&[0, 0, 0, 0, 0, 0], &side, &[0, 0], &side]);
    let properties = boxed(
        b"iprp",
        &[&boxed(b"ipco", &[&size]), &boxed(b"ipma", &[&[0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1]])],
    );
    let meta = boxed(
        b"meta",
        &[
            &[0; 4],
            &boxed(b"pitm", &[&[0, 0, 0, 0, 0, 1]]),
            &boxed(b"iinf", &[&[0, 0, 0, 0, 0, 2], &item(1, b"grid"), &item(2, b"av01")]),
            &boxed(b"iloc", &locations),
            &boxed(b"iref", &[&[0; 4], &boxed(b"dimg", &[&[0, 1, 1, 0], &tiles])]),
            &properties,
            &boxed(b"idat", &[&grid]),
        ],
    );
    let file = [boxed(b"ftyp", &[b"avif\0\0\0\0avif"]), meta, vec![0; DATA as usize]].concat();
    check("an AVIF with 256 equal tiles", &file);
    // Only the coded data is wrong.
    let error = decode(&file, &LARGE).unwrap_err();
    assert!(error.detail().contains("damaged"), "{error}");
}

/// Noise does not compress.
const LARGE: DecodeLimits = DecodeLimits { max_bytes: 64 << 20, max_pixels: 4_000_000 };

/// Everything that is done with an image.
fn everything(bytes: &[u8]) {
    let limits = LARGE;
    let config = PreprocessConfig::default();
    let image = decode_for(bytes, &limits, config.width, config.height).unwrap();
    config.preprocess(&image).unwrap();
    assert!(!Colors::of(&image).colors.is_empty());
    Measures::of(&image).unwrap();
}

/// An image of noise in this format. Its size is odd, so that blocks are cut off.
fn large(format: ImageFormat, color: ExtendedColorType) -> Vec<u8> {
    let (width, height) = (2001_u32, 1501_u32);
    let length = u64::from(width) * u64::from(height) * u64::from(color.bits_per_pixel()) / 8;
    let noise = |index: u64| (index.wrapping_mul(2_654_435_761) >> 13) as u8;
    let pixels: Vec<u8> = (0..length).map(noise).collect();
    let mut file = std::io::Cursor::new(Vec::new());
    image::write_buffer_with_format(&mut file, &pixels, width, height, color, format).unwrap();
    file.into_inner()
}

/// A JPEG of noise. Its size is odd, so that blocks are cut off.
fn large_jpeg(is_progressive: bool, sampling: (u8, u8)) -> Vec<u8> {
    let (width, height) = (2001, 1501);
    let noise = |index: usize| (index.wrapping_mul(2_654_435_761) >> 13) as u8;
    let pixels: Vec<u8> = (0..3 * width * height).map(noise).collect();
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_size(width, height);
    encoder.set_fastest_defaults();
    if is_progressive {
        encoder.set_progressive_mode();
    }
    encoder.set_chroma_sampling_pixel_sizes(sampling, sampling);
    encoder.set_quality(50.0);
    let mut encoder = encoder.start_compress(Vec::new()).unwrap();
    encoder.write_scanlines(&pixels).unwrap();
    encoder.finish().unwrap()
}

/// A value of `/proc/self/status`, in bytes.
#[cfg(target_os = "linux")]
fn status(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

/// libjpeg allocates in C, which is not counted, so the kernel has to say how much it was.
#[cfg(target_os = "linux")]
#[test]
fn the_header_of_a_jpeg_counts_its_coefficients() {
    let _alone = alone();
    // The C library keeps memory that was freed, unless it comes in pages of its own.
    const PAGES: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "65536");
    if std::env::var(PAGES.0).is_err() {
        let test = "the_header_of_a_jpeg_counts_its_coefficients";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let status = again.args([test, "--exact", "--nocapture"]).env(PAGES.0, PAGES.1).status();
        assert!(status.unwrap().success());
        return;
    }
    let pixels = 2001 * 1501;
    for (is_progressive, sampling, least) in [
        (false, (1, 1), 3 * pixels),
        (false, (2, 2), 3 * pixels),
        (true, (1, 1), 8 * pixels),
        (true, (2, 2), 5 * pixels),
    ] {
        let bytes = large_jpeg(is_progressive, sampling);
        let name = format!("progressive {is_progressive}, {sampling:?}");
        let promised = promised(&name, &bytes, &LARGE).unwrap();
        // Sets the peak back to what is resident now.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS:");
        everything(&bytes);
        let most = status("VmHWM:").saturating_sub(before);
        println!("{name}: {most} of {promised}");
        assert!(most <= promised, "{name}: {most} bytes, and {promised} were promised");
        assert!(most >= least, "{name}: only {most} bytes were measured");
        assert!(promised <= most + most / 4 + FIXED, "{name}: {promised} promised, {most} taken");
    }
}

/// The promise is kept, and it is no more than a quarter larger than what is taken, beside the fixed
/// part.
#[test]
fn the_header_tells_how_much_memory_an_image_takes() {
    let _alone = alone();
    use ExtendedColorType::{L8, L16, La8, Rgb8, Rgb16, Rgba8, Rgba16};
    use ImageFormat::{Bmp, Gif, Png, Tiff, WebP};
    let formats = [
        (Png, &[L8, La8, L16, Rgb8, Rgba8, Rgb16, Rgba16][..]),
        (Tiff, &[L8, L16, Rgb8, Rgba8, Rgb16, Rgba16]),
        (Bmp, &[Rgb8, Rgba8]),
        (WebP, &[Rgb8, Rgba8]),
        (Gif, &[Rgb8]),
    ];
    for (format, color) in formats
        .into_iter()
        .flat_map(|(format, colors)| colors.iter().map(move |color| (format, *color)))
    {
        let bytes = large(format, color);
        let name = format!("{format:?} {color:?}");
        let promised = promised(&name, &bytes, &LARGE).unwrap();
        let (most, ()) = peak(|| everything(&bytes));
        println!("{name}: {most} of {promised}");
        assert!(most <= promised, "{name}: {most} bytes, and {promised} were promised");
        assert!(promised <= most + most / 4 + FIXED, "{name}: {promised} promised, {most} taken");
    }
    for (name, bytes) in zoo() {
        if decode(&bytes, &LARGE).is_ok() {
            let promised = promised(&name, &bytes, &LARGE).unwrap();
            let (most, ()) = peak(|| everything(&bytes));
            println!("{name}: {most} of {promised}");
            assert!(most <= promised, "{name}: {most} bytes, and {promised} were promised");
        }
    }
}

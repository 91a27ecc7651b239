//! The server takes no more memory than `/health` says, whatever the images are.

use std::fs;
use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{DynamicImage, ImageFormat, Rgba};
use serde_json::Value;

use super::server::Server;
use super::{assert_sentence, cutline, photo};

/// Eight million pixels.
const SIDES: (u32, u32) = (3200, 2500);

/// Images that take much more memory than their files: 16 bits, transparency, progressive, CMYK.
fn demanding_images() -> Vec<Vec<u8>> {
    let (width, height) = SIDES;
    let deep = image::ImageBuffer::from_pixel(width, height, Rgba([9u16, 80, 700, 6000]));
    let deep = DynamicImage::from(deep);
    let plain = DynamicImage::from(deep.to_rgba8());
    let encoded = |image: &DynamicImage, format| {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    vec![
        encoded(&deep, ImageFormat::Png),
        encoded(&plain, ImageFormat::WebP),
        encoded(&plain, ImageFormat::Gif),
        progressive(mozjpeg::ColorSpace::JCS_RGB, 3),
        progressive(mozjpeg::ColorSpace::JCS_CMYK, 4),
    ]
}

fn progressive(space: mozjpeg::ColorSpace, channels: usize) -> Vec<u8> {
    let (width, height) = (SIDES.0 as usize, SIDES.1 as usize);
    let mut encoder = mozjpeg::Compress::new(space);
    encoder.set_size(width, height);
    encoder.set_progressive_mode();
    if channels == 4 {
        encoder.set_color_space(space);
    } else {
        encoder.set_chroma_sampling_pixel_sizes((1, 1), (1, 1));
    }
    let mut encoder = encoder.start_compress(Vec::new()).unwrap();
    let row = vec![90; width * channels];
    (0..height).for_each(|_| encoder.write_scanlines(&row).unwrap());
    encoder.finish().unwrap()
}

fn batch(images: &[Vec<u8>]) -> String {
    let images: Vec<String> = images.iter().map(|image| BASE64_STANDARD.encode(image)).collect();
    serde_json::json!({ "images": images }).to_string()
}

/// The most resident memory of a process so far, in bytes.
fn peak_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn post(url: &str, content_type: &str, body: &[u8]) -> (u16, Value) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let request = ureq::Agent::new_with_config(config).post(url);
    let mut answer = request.header("content-type", content_type).send(body).unwrap();
    let body = answer.body_mut().read_to_vec().unwrap();
    (answer.status().as_u16(), serde_json::from_slice(&body).unwrap())
}

#[test]
fn the_most_demanding_images_at_once_stay_within_the_memory_that_health_states() {
    let server = Server::start_with(&[
        // Together they would take more than twice the bound.
        ("MAX_WORKERS", "12"),
        ("MAX_IMAGE_PIXELS", "8000000"),
        ("MAX_INFLIGHT_BYTES", "67108864"),
        ("MAX_CONNECTIONS", "64"),
        ("CACHE_MAX_BYTES", "1048576"),
        ("VISION_CACHE_BYTES", "1048576"),
        ("REQUEST_TIMEOUT", "600"),
    ]);
    server.wait_until_ready();
    let memory = server.get("/health").1["memory"].clone();
    let bytes = |name: &str| memory[name].as_u64().unwrap();
    let parts = ["loaded", "files", "decoding", "caches", "batch", "connections", "other"];
    let sum: u64 = parts.iter().map(|part| bytes(&format!("{part}_bytes"))).sum();
    assert_eq!(bytes("peak_bytes"), sum, "{memory}");
    assert!(bytes("peak_bytes") < 700 << 20, "the test would prove little: {memory}");

    let images = demanding_images();
    let decoded = AtomicUsize::new(0);
    scope(|threads| {
        threads.spawn(|| {
            let url = format!("{}/caption/batch?cache=bypass", server.address);
            let (status, answer) = post(&url, "application/json", batch(&images).as_bytes());
            assert_eq!((status, &answer["summary"]["ok"]), (200, &images.len().into()), "{answer}");
        });
        for turn in 0..3 {
            for (number, image) in images.iter().enumerate() {
                let (server, decoded) = (&server, &decoded);
                threads.spawn(move || {
                    let captioned = (turn + number) % 2 == 0;
                    let route = if captioned {
                        "/caption/generate?cache=bypass&num_beams=10&num_captions=10&max_new_tokens=60"
                    } else {
                        "/image/process"
                    };
                    let url = format!("{}{route}", server.address);
                    let (status, answer) = post(&url, "application/octet-stream", image);
                    assert_eq!(status, 200, "image {number}: {answer}");
                    decoded.fetch_add(1, Ordering::SeqCst);
                });
            }
        }
    });
    assert_eq!(decoded.into_inner(), 3 * images.len());
    let peak = peak_bytes(server.id());
    assert!(peak <= bytes("peak_bytes"), "{peak} bytes at most: {memory}");
}

#[test]
fn the_command_refuses_a_photo_that_takes_more_memory_than_decoding_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.gif");
    let image = DynamicImage::new_rgba8(SIDES.0, SIDES.1);
    image.save(&path).unwrap();
    let arguments = ["caption", "--max-decode-bytes", "33554432", "large.gif"];
    let output = cutline(&folder, &arguments).output().unwrap();
    assert_sentence(&output, 1, &["large.gif", "3200×2500", "MAX_DECODE_BYTES"]);
    let cat = photo("cat");
    let output = cutline(&folder, &["caption", "--max-decode-bytes", "33554432", &cat]).output();
    super::assert_status(&output.unwrap(), 0);
}

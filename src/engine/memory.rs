//! Whether there is memory for the weights of a large model, before they are read.

use cutline_blip::{BlipConfig, Weights};
use cutline_error::{Error, ErrorKind, Result};
use cutline_kernels::Precision;

/// States how much memory the weights take on our kernels, and refuses to load them if it is not there.
///
/// # Errors
/// [`Config`](ErrorKind::Config): there is too little memory.
pub(super) fn check(config: &BlipConfig, weights: &Weights, precision: Precision) -> Result<()> {
    let needed = bytes(config, weights, precision);
    let free = available_bytes();
    tracing::info!(
        needed_bytes = needed,
        free_bytes = free,
        "the weights take {} in this precision while they are loaded",
        gigabytes(needed)
    );
    free.map_or(Ok(()), |free| enough(needed, free))
}

/// The packed weights, and the largest tensor twice more in f32 while it is packed.
fn bytes(config: &BlipConfig, weights: &Weights, precision: Precision) -> u64 {
    let largest = weights.names().filter_map(|name| weights.shape(name)).map(numbers).max();
    let head = numbers(&[config.text.vocab_size, config.text.hidden_size]);
    let packed = match precision {
        Precision::F32 => 4 * weights.parameters(),
        Precision::Bf16 => 2 * weights.parameters(),
        // The head has 16 bits.
        Precision::Int8 => weights.parameters() + head,
    };
    packed + 8 * largest.unwrap_or(0)
}

fn numbers(shape: &[usize]) -> u64 {
    shape.iter().map(|&side| side as u64).product()
}

fn enough(needed: u64, free: u64) -> Result<()> {
    if needed <= free {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "the weights take {} in this precision while they are loaded, but only {} of memory are \
             free; set PRECISION=int8, close other programs, or choose a smaller model",
            gigabytes(needed),
            gigabytes(free)
        ),
    ))
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Memory that programs can still get, on the machine and in its container, where the system tells.
#[cfg(target_os = "linux")]
fn available_bytes() -> Option<u64> {
    use procfs::Current;

    let of_machine = procfs::Meminfo::current().ok().and_then(|memory| memory.mem_available);
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    let taken = status.ok().and_then(|status| status.vmrss).unwrap_or(0) * 1024;
    let in_container = limit.map(|limit| limit.saturating_sub(taken));
    of_machine.into_iter().chain(in_container).min()
}

#[cfg(not(target_os = "linux"))]
fn available_bytes() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_do_not_fit_are_refused_with_both_numbers() {
        assert!(enough(5, 5).is_ok());
        let error = enough(7_800_000_000, 4_000_000_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        for part in ["7.8 GB", "4.0 GB", "PRECISION=int8"] {
            assert!(error.detail().contains(part), "{error}");
        }
    }
}

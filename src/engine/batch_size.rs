//! How many rows a device should decode together.
//!
//! On a CPU that is known: see docs/design/scheduling.md. GPUs differ by a factor of twenty in speed
//! and memory, so there it is measured once, while the engine is warmed up.

use super::Engine;
use super::bench::{Workload, measure_sized};
use super::local::LocalEngine;
use cutline_error::{Error, ErrorKind, Result};

/// Rows on a CPU: as many as still make an image noticeably cheaper.
pub const ON_CPU: usize = 8;

/// The most that is tried. Rows beyond it would not be cheaper, but wait longer.
const LARGEST: usize = 256;

/// By how much a doubling must raise the throughput to be worth its latency.
const LEAST_GAIN: f64 = 0.05;

/// Tokens of the captions that are timed, as many as a short caption has.
const NEW_TOKENS: usize = 10;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Rows that should be decoded together.
    pub rows: usize,
    /// Images per second with as many.
    pub images_per_second: f64,
    /// Why not more.
    pub limit: Limit,
}

/// What ended a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// More rows were not faster.
    Throughput,
    /// More rows did not fit into the device's memory.
    Memory,
    /// More are never tried.
    Bound,
}

impl Limit {
    /// In words, for the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Throughput => "more are not faster",
            Self::Memory => "more do not fit into its memory",
            Self::Bound => "more are never tried",
        }
    }
}

/// Tries out what suits `engine`, which has no work and sees images of `width` × `height` pixels.
///
/// # Errors
/// Not even one image can be captioned, or captioning fails for want of something else than memory.
pub fn find(engine: &mut LocalEngine, width: usize, height: usize) -> Result<Found> {
    let new_tokens = NEW_TOKENS.min(engine.info().max_positions.saturating_sub(1)).max(1);
    search(LARGEST, |batch| {
        let workload = Workload { batch, new_tokens, iterations: 2 };
        let measured = measure_sized(engine, workload, [width, height]);
        if measured.is_err() {
            engine.reset();
        }
        Ok(1.0 / measured?.end_to_end.as_secs_f64().max(1e-9))
    })
}

/// Doubles the rows, from one on, as long as `throughput` (images per second with so many rows)
/// grows and memory lasts. One doubling that gains nothing may be noise; after two it is over.
///
/// # Errors
/// Those of `throughput`, but for want of memory for more than one row.
fn search(most: usize, mut throughput: impl FnMut(usize) -> Result<f64>) -> Result<Found> {
    let mut best: Option<Found> = None;
    let (mut rows, mut vain) = (1, 0);
    let end = |best: Option<Found>, limit| match best {
        Some(best) => Ok(Found { limit, ..best }),
        None => Err(Error::internal("no batch size was tried")),
    };
    while rows <= most {
        match throughput(rows) {
            Ok(speed) => {
                let gained =
                    best.is_none_or(|best| speed > best.images_per_second * (1.0 + LEAST_GAIN));
                if gained {
                    vain = 0;
                    best = Some(Found { rows, images_per_second: speed, limit: Limit::Throughput });
                } else {
                    vain += 1;
                }
            }
            Err(error) if error.kind() == ErrorKind::OutOfMemory && best.is_some() => {
                return end(best, Limit::Memory);
            }
            Err(error) => return Err(error),
        }
        if vain == 2 {
            return end(best, Limit::Throughput);
        }
        rows *= 2;
    }
    let limit = if vain == 0 { Limit::Bound } else { Limit::Throughput };
    end(best, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches with these images per second for 1, 2, 4, … rows; `None` is no memory. Also what was
    /// tried.
    fn searched(most: usize, speeds: &[Option<f64>]) -> (Result<Found>, Vec<usize>) {
        let mut tried = Vec::new();
        let found = search(most, |rows| {
            let speed = speeds[tried.len()];
            tried.push(rows);
            speed.ok_or_else(|| Error::new(ErrorKind::OutOfMemory, "as planned"))
        });
        (found, tried)
    }

    fn found(rows: usize, images_per_second: f64, limit: Limit) -> Found {
        Found { rows, images_per_second, limit }
    }

    #[test]
    fn rows_are_doubled_while_that_pays() {
        let speeds = [100.0, 190.0, 350.0, 360.0, 365.0, 900.0].map(Some);
        let (result, tried) = searched(256, &speeds);
        assert_eq!(result.unwrap(), found(4, 350.0, Limit::Throughput));
        assert_eq!(tried, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn one_slow_doubling_may_be_noise() {
        let speeds = [100.0, 190.0, 150.0, 700.0, 710.0, 705.0].map(Some);
        assert_eq!(searched(256, &speeds).0.unwrap(), found(8, 700.0, Limit::Throughput));
    }

    #[test]
    fn small_gains_do_not_add_up_unseen() {
        // 4 % each: twice that is more than the least gain, so the second of them counts.
        let speeds = [100.0, 104.0, 108.2, 109.0, 110.0].map(Some);
        assert_eq!(searched(256, &speeds).0.unwrap(), found(4, 108.2, Limit::Throughput));
    }

    #[test]
    fn memory_ends_the_search() {
        let speeds = [Some(100.0), Some(200.0), Some(400.0), None];
        let (result, tried) = searched(256, &speeds);
        assert_eq!(result.unwrap(), found(4, 400.0, Limit::Memory));
        assert_eq!(tried, [1, 2, 4, 8]);
        // The one before was not worth it, and that one stays out.
        let speeds = [Some(100.0), Some(101.0), None];
        assert_eq!(searched(256, &speeds).0.unwrap(), found(1, 100.0, Limit::Memory));
    }

    #[test]
    fn there_is_a_largest_size() {
        let speeds = [1.0, 2.0, 4.0, 8.0].map(Some);
        let (result, tried) = searched(8, &speeds);
        assert_eq!(result.unwrap(), found(8, 8.0, Limit::Bound));
        assert_eq!(tried, [1, 2, 4, 8]);
        let speeds = [1.0, 2.0, 4.0, 4.0].map(Some);
        assert_eq!(searched(8, &speeds).0.unwrap(), found(4, 4.0, Limit::Throughput));
    }

    #[test]
    fn what_is_no_want_of_memory_is_told() {
        let (result, tried) = searched(256, &[None]);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::OutOfMemory, "not even for one");
        assert_eq!(tried, [1]);
        let broken = search(256, |rows| match rows {
            1 => Ok(1.0),
            _ => Err(Error::internal("broken")),
        });
        assert_eq!(broken.unwrap_err().kind(), ErrorKind::Internal);
    }
}

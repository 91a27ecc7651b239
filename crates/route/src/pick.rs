//! Which member of a tier gets a request: two are drawn by their weights, and the one with less to do for
//! its weight is taken. That spreads requests nearly as well as asking all members, and does not send
//! every request of a moment to the same one.

use crate::Random;

/// A member that could take a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) backend: usize,
    pub(crate) weight: f64,
    pub(crate) in_flight: usize,
}

impl Ready {
    fn load(&self) -> f64 {
        (self.in_flight as f64 + 1.0) / self.weight
    }
}

/// The index of one of `ready`; `None` if it is empty.
pub(crate) fn pick(ready: &[Ready], random: Random<'_>) -> Option<usize> {
    let first = draw(ready, None, random)?;
    let Some(second) = draw(ready, Some(first), random) else { return Some(first) };
    Some(if ready[second].load() < ready[first].load() { second } else { first })
}

/// One of `ready` by weight, but not `without`.
fn draw(ready: &[Ready], without: Option<usize>, random: Random<'_>) -> Option<usize> {
    let others = || ready.iter().enumerate().filter(|(at, _)| Some(*at) != without);
    let total: f64 = others().map(|(_, one)| one.weight).sum();
    let mut left = random().clamp(0.0, 1.0) * total;
    let mut last = None;
    for (at, one) in others() {
        last = Some(at);
        left -= one.weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that are spread evenly and repeat exactly.
    fn spread() -> impl FnMut() -> f64 {
        let mut at = 0.0_f64;
        move || {
            at = (at + 0.618_033_988_749_894_9).fract();
            at
        }
    }

    #[test]
    fn requests_follow_the_weights_while_they_are_in_flight() {
        let mut random = spread();
        let mut ready = [1.0, 3.0].map(|weight| Ready { backend: 0, weight, in_flight: 0 });
        for _ in 0..400 {
            let at = pick(&ready, &mut random).unwrap();
            ready[at].in_flight += 1;
        }
        assert!((95..=105).contains(&ready[0].in_flight), "{ready:?}");
    }

    #[test]
    fn a_busy_member_is_passed_over_and_none_is_picked_from_none() {
        let busy = Ready { backend: 0, weight: 1.0, in_flight: 50 };
        let idle = Ready { in_flight: 0, ..busy };
        for first in [0.0, 0.4, 0.6, 0.999] {
            assert_eq!(pick(&[busy, idle], &mut || first), Some(1));
        }
        assert_eq!(pick(&[idle], &mut || 0.99), Some(0));
        assert_eq!(pick(&[], &mut || 0.5), None);
    }
}

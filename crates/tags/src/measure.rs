//! How good tags are, compared with those that people gave.

use std::collections::HashSet;

use serde::Serialize;

use crate::choice::Scored;
use crate::vocabulary::{TagId, Vocabulary};

/// Ranges of scores in which scores are compared with shares.
const BINS: usize = 10;

/// A photo with its tags.
#[derive(Debug, Clone, Default)]
pub struct Photo {
    /// The tags that people gave.
    pub truth: HashSet<TagId>,
    /// The tags that were chosen.
    pub chosen: Vec<TagId>,
    /// All tags with their scores; those that are missing rank last.
    pub scored: Vec<Scored>,
    /// Rules that the answer breaks.
    pub violations: usize,
}

/// The measures of a set of photos. Shares are between 0 and 1.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Measures {
    /// Photos.
    pub photos: usize,
    /// Tags that people gave.
    pub true_tags: usize,
    /// The share of right ones among the chosen tags.
    pub precision: f64,
    /// The share of people's tags that were chosen.
    pub recall: f64,
    /// The harmonic mean of the two.
    pub micro_f1: f64,
    /// The mean of the tags' own F1, over the tags that people gave.
    pub macro_f1: f64,
    /// The mean average precision: for each tag, of the photos in the order of its score.
    pub map: f64,
    /// The share of photos whose best tag is right, among those with tags.
    pub precision_at_1: f64,
    /// The mean share of right ones among the five best.
    pub precision_at_5: f64,
    /// The mean share of people's tags that are among the five best.
    pub recall_at_5: f64,
    /// The share of categories that got a tag.
    pub coverage: f64,
    /// Rules that the answers break.
    pub violations: usize,
    /// The expected calibration error: how far scores are from the shares of right tags.
    pub ece: f64,
}

/// Compares.
#[must_use]
pub fn measure(vocabulary: &Vocabulary, photos: &[Photo]) -> Measures {
    let mut measures = Measures {
        photos: photos.len(),
        true_tags: photos.iter().map(|photo| photo.truth.len()).sum(),
        violations: photos.iter().map(|photo| photo.violations).sum(),
        ..Measures::default()
    };
    let chosen: usize = photos.iter().map(|photo| photo.chosen.len()).sum();
    let right: usize = photos.iter().map(right).sum();
    measures.precision = share(right, chosen);
    measures.recall = share(right, measures.true_tags);
    measures.micro_f1 = share(2 * right, chosen + measures.true_tags);
    by_tag(vocabulary, photos, &mut measures);
    by_rank(photos, &mut measures);
    let filled = |photo: &Photo| {
        let of = |id: &TagId| vocabulary.category(*id).name();
        photo.chosen.iter().map(of).collect::<HashSet<_>>().len()
    };
    let categories = vocabulary.categories().len() * photos.len();
    measures.coverage = share(photos.iter().map(filled).sum(), categories);
    measures.ece = ece(photos);
    measures
}

fn right(photo: &Photo) -> usize {
    photo.chosen.iter().filter(|tag| photo.truth.contains(tag)).count()
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn by_tag(vocabulary: &Vocabulary, photos: &[Photo], measures: &mut Measures) {
    let (mut f1, mut precision, mut tags) = (0.0, 0.0, 0_usize);
    // The score of each tag for each photo.
    let mut scores: Vec<Vec<(f32, bool)>> = vec![Vec::new(); vocabulary.len()];
    for photo in photos {
        for (id, _) in vocabulary.tags() {
            scores[id.0].push((f32::NEG_INFINITY, photo.truth.contains(&id)));
        }
        for &Scored { tag, score } in &photo.scored {
            if let Some(last) = scores[tag.0].last_mut() {
                last.0 = last.0.max(score);
            }
        }
    }
    for (id, _) in vocabulary.tags() {
        let given = photos.iter().filter(|photo| photo.truth.contains(&id)).count();
        if given == 0 {
            continue;
        }
        tags += 1;
        let chosen = photos.iter().filter(|photo| photo.chosen.contains(&id)).count();
        let both = |photo: &&Photo| photo.chosen.contains(&id) && photo.truth.contains(&id);
        f1 += share(2 * photos.iter().filter(both).count(), given + chosen);
        precision += average_precision(&mut scores[id.0], given);
    }
    if tags > 0 {
        measures.macro_f1 = f1 / tags as f64;
        measures.map = precision / tags as f64;
    }
}

/// Equal scores count as if the wrong ones came first.
fn average_precision(scores: &mut [(f32, bool)], given: usize) -> f64 {
    scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut found = 0;
    let mut sum = 0.0;
    for (rank, (score, right)) in scores.iter().enumerate() {
        if *right && score.is_finite() {
            found += 1;
            sum += f64::from(found) / (rank + 1) as f64;
        }
    }
    sum / given as f64
}

fn by_rank(photos: &[Photo], measures: &mut Measures) {
    const FIVE: usize = 5;
    let with_truth: Vec<&Photo> = photos.iter().filter(|photo| !photo.truth.is_empty()).collect();
    let (mut first, mut five, mut recall) = (0, 0.0, 0.0);
    for photo in &with_truth {
        let mut ranked = photo.scored.clone();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        let right = |tags: &[Scored]| {
            tags.iter().filter(|scored| photo.truth.contains(&scored.tag)).count()
        };
        first += right(&ranked[..ranked.len().min(1)]);
        let best = right(&ranked[..ranked.len().min(FIVE)]);
        five += share(best, FIVE);
        recall += share(best, photo.truth.len());
    }
    measures.precision_at_1 = share(first, with_truth.len());
    if !with_truth.is_empty() {
        measures.precision_at_5 = five / with_truth.len() as f64;
        measures.recall_at_5 = recall / with_truth.len() as f64;
    }
}

fn ece(photos: &[Photo]) -> f64 {
    let mut bins = [(0_usize, 0_usize, 0.0_f64); BINS];
    for photo in photos {
        for &Scored { tag, score } in &photo.scored {
            let score = f64::from(score.clamp(0.0, 1.0));
            // The last bin includes 1.
            let bin = &mut bins[((score * BINS as f64) as usize).min(BINS - 1)];
            bin.0 += 1;
            bin.1 += usize::from(photo.truth.contains(&tag));
            bin.2 += score;
        }
    }
    let all: usize = bins.iter().map(|bin| bin.0).sum();
    let error = bins.iter().map(|(_, right, scores)| (*right as f64 - scores).abs()).sum::<f64>();
    if all == 0 { 0.0 } else { error / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `truth`, `chosen` and scores of three tags, by number.
    fn photo(truth: &[usize], chosen: &[usize], scores: &[f32]) -> Photo {
        let ids = |numbers: &[usize]| numbers.iter().map(|n| TagId(*n)).collect::<Vec<_>>();
        let scored =
            scores.iter().enumerate().map(|(n, score)| Scored { tag: TagId(n), score: *score });
        Photo {
            truth: ids(truth).into_iter().collect(),
            chosen: ids(chosen),
            scored: scored.collect(),
            violations: 0,
        }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn measures_are_those_of_their_definitions() {
        let vocabulary = Vocabulary::parse(b"[one]\na1\nb1\n[two]\nc1").unwrap();
        let photos = [
            photo(&[0], &[0], &[0.9, 0.2, 0.1]),
            photo(&[0, 2], &[1], &[0.3, 0.8, 0.1]),
            photo(&[], &[0], &[0.6, 0.1, 0.2]),
        ];
        let measures = measure(&vocabulary, &photos);
        close(measures.precision, 1.0 / 3.0);
        close(measures.recall, 1.0 / 3.0);
        close(measures.micro_f1, 1.0 / 3.0);
        // Of the first tag 2 · 1 / (2 + 2), of the third 0; nobody gave the second.
        close(measures.macro_f1, 0.25);
        // The first tag: right, wrong, right. The third: wrong ones before it, since a tie counts so.
        close(measures.map, f64::midpoint((1.0 + 2.0 / 3.0) / 2.0, 1.0 / 3.0));
        close(measures.precision_at_1, 0.5);
        close(measures.precision_at_5, f64::midpoint(0.2, 0.4));
        close(measures.recall_at_5, 1.0);
        close(measures.coverage, 0.5);
        assert_eq!((measures.photos, measures.true_tags), (3, 3));
    }

    #[test]
    fn calibration_compares_scores_with_shares() {
        let vocabulary = Vocabulary::parse(b"a1\nb1").unwrap();
        let sure = |right: bool| photo(if right { &[0] } else { &[] }, &[], &[0.75]);
        let photos = [sure(true), sure(true), sure(true), sure(false)];
        close(measure(&vocabulary, &photos).ece, 0.0);
        close(measure(&vocabulary, &photos[3..]).ece, 0.75);
        assert_eq!(measure(&vocabulary, &[]), Measures::default());
    }
}

//! The choice of tags: the best of each category, and nothing that is not allowed.

use std::collections::HashSet;

use crate::vocabulary::{TagId, Vocabulary};

/// A tag with its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The tag.
    pub tag: TagId,
    /// How well it fits, 0–1.
    pub score: f32,
}

/// What a request says about all categories.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The most tags of a category, instead of its own number.
    pub k: Option<usize>,
    /// The least score, instead of the category's own threshold.
    pub min_score: Option<f32>,
    /// The least score where neither says so.
    pub threshold: f32,
}

/// The tags of one category.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The number of the category.
    pub category: usize,
    /// The best first.
    pub tags: Vec<Scored>,
}

/// The best tags of each category, in the order of the vocabulary. Whatever `scored` has: each tag at most
/// once, at most as many as the category takes, none below its threshold. Tags of other vocabularies
/// are left out. A category may stay empty.
#[must_use]
pub fn choose(
    vocabulary: &Vocabulary,
    limits: Limits,
    scored: impl IntoIterator<Item = Scored>,
) -> Vec<Chosen> {
    // The best score of each tag; a score that is no number is none.
    let mut best: Vec<Option<f32>> = vec![None; vocabulary.len()];
    for Scored { tag, score } in scored {
        if let Some(known) = best.get_mut(tag.0).filter(|_| !score.is_nan()) {
            *known = Some(known.map_or(score, |known| known.max(score)));
        }
    }
    let of_category = |(number, category): (usize, &crate::Category)| {
        let least = limits.min_score.or(category.threshold()).unwrap_or(limits.threshold);
        let with_score = |tag: TagId| Some(Scored { tag, score: best[tag.0]? });
        let mut tags: Vec<Scored> =
            category.tags().filter_map(with_score).filter(|tag| tag.score >= least).collect();
        // Stable: equal ones keep the order of the vocabulary.
        tags.sort_by(|a, b| b.score.total_cmp(&a.score));
        tags.truncate(limits.k.unwrap_or(category.k()));
        for tag in &mut tags {
            tag.score = tag.score.clamp(0.0, 1.0);
        }
        Chosen { category: number, tags }
    };
    vocabulary.categories().iter().enumerate().map(of_category).collect()
}

/// How often an answer breaks a rule: a category or a tag that is not allowed, a tag twice, more tags than
/// a category takes. Reads the names, as a client would.
pub fn violations<'a>(
    vocabulary: &Vocabulary,
    k: Option<usize>,
    answer: impl IntoIterator<Item = (&'a str, Vec<&'a str>)>,
) -> usize {
    let mut broken = 0;
    let mut categories = HashSet::new();
    for (name, tags) in answer {
        let category = vocabulary.categories().iter().find(|category| category.name() == name);
        let Some(category) = category.filter(|_| categories.insert(name)) else {
            broken += 1;
            continue;
        };
        let allowed: HashSet<&str> = category.tags().map(|id| vocabulary.tag(id).name()).collect();
        let mut seen = HashSet::new();
        broken += tags.iter().filter(|tag| !allowed.contains(*tag) || !seen.insert(**tag)).count();
        broken += tags.len().saturating_sub(k.unwrap_or(category.k()));
    }
    broken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vocabulary(sizes: &[(usize, usize)]) -> Vocabulary {
        let categories: Vec<String> = sizes
            .iter()
            .enumerate()
            .map(|(c, (tags, k))| {
                let tags: Vec<String> = (0..*tags).map(|t| format!("\"tag {c} {t}\"")).collect();
                format!(r#"{{"name": "c{c}", "k": {k}, "tags": [{}]}}"#, tags.join(","))
            })
            .collect();
        let text = format!(r#"{{"categories": [{}]}}"#, categories.join(","));
        Vocabulary::from_json(&text).unwrap()
    }

    proptest! {
        #[test]
        fn only_allowed_tags_none_twice_and_never_too_many(
            sizes in prop::collection::vec((1_usize..12, 1_usize..6), 1..5),
            scores in prop::collection::vec((0_usize..60, prop::num::f32::ANY), 0..120),
            k in prop::option::of(1_usize..8),
            min_score in prop::option::of(0.0_f32..1.0),
        ) {
            let vocabulary = vocabulary(&sizes);
            let limits = Limits { k, min_score, threshold: 0.5 };
            let scored = scores.iter().map(|&(tag, score)| Scored { tag: TagId(tag), score });
            let chosen = choose(&vocabulary, limits, scored);
            prop_assert_eq!(chosen.len(), vocabulary.categories().len());
            let least = min_score.unwrap_or(0.5);
            let mut seen = HashSet::new();
            for one in &chosen {
                let category = &vocabulary.categories()[one.category];
                prop_assert!(one.tags.len() <= k.unwrap_or(category.k()));
                prop_assert!(one.tags.windows(2).all(|pair| pair[0].score >= pair[1].score));
                for tag in &one.tags {
                    prop_assert!(category.tags().any(|id| id == tag.tag));
                    prop_assert!(seen.insert(tag.tag), "twice");
                    prop_assert!((least..=1.0).contains(&tag.score));
                }
                // None that was left out is better than one that was chosen.
                let last = one.tags.last().map_or(least, |tag| tag.score);
                let full = one.tags.len() == k.unwrap_or(category.k());
                for (tag, score) in &scores {
                    let id = TagId(*tag);
                    let own = category.tags().any(|other| other == id);
                    let out = !one.tags.iter().any(|tag| tag.tag == id);
                    if own && out && !score.is_nan() {
                        prop_assert!(*score < least || full && score.clamp(0.0, 1.0) <= last);
                    }
                }
            }
            let answer = chosen.iter().map(|one| {
                let tags = one.tags.iter().map(|tag| vocabulary.tag(tag.tag).name()).collect();
                (vocabulary.categories()[one.category].name(), tags)
            });
            prop_assert_eq!(violations(&vocabulary, k, answer), 0);
        }
    }

    #[test]
    fn broken_rules_are_counted() {
        let vocabulary = vocabulary(&[(3, 2), (1, 1)]);
        let count =
            |answer: Vec<(&'static str, Vec<&'static str>)>| violations(&vocabulary, None, answer);
        assert_eq!(count(vec![("c0", vec!["tag 0 0", "tag 0 2"]), ("c1", vec![])]), 0);
        assert_eq!(count(vec![("c0", vec!["tag 0 0", "tag 0 0"])]), 1, "twice");
        assert_eq!(count(vec![("c0", vec!["tag 1 0"])]), 1, "of another category");
        assert_eq!(count(vec![("c0", vec!["tag 0 0", "tag 0 1", "tag 0 2"])]), 1, "too many");
        assert_eq!(count(vec![("none", vec![]), ("c0", vec![]), ("c0", vec![])]), 2);
    }
}

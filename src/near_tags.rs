//! Tags of similar photos in a library.

use std::sync::Arc;

use cutline_library::{ContentHash, Features, Field, Neighbour, Probe, Similar, Store};

use crate::captioner::{NearPhoto, NearTags};
use crate::library;
use cutline_error::{ErrorKind, Result};

/// Similar photos that are looked at.
const LOOKED_AT: usize = 60;
/// Similar photos with tags that count.
const COUNTED: usize = 12;
/// Photos that are less similar say nothing.
const MIN_SCORE: f32 = 0.3;

/// Finds similar photos of a library, and their tags.
#[derive(Debug, Clone)]
pub struct LibraryTags {
    store: Arc<dyn Store>,
}

impl LibraryTags {
    /// Reads `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The tags that people wrote, accepted or imported; none of a model.
    fn accepted(&self, neighbour: Neighbour) -> Result<Option<NearPhoto>> {
        let Some(asset) = self.store.asset(&neighbour.hash)? else { return Ok(None) };
        let Some(tags) = asset.text(Field::Tags, "en").filter(|tags| tags.reviewed) else {
            return Ok(None);
        };
        let tags: Vec<String> = tags.text.lines().map(str::to_owned).collect();
        let (hash, score) = (neighbour.hash.to_string(), neighbour.score);
        Ok(if tags.is_empty() { None } else { Some(NearPhoto { hash, score, tags }) })
    }
}

impl NearTags for LibraryTags {
    fn near(
        &self,
        photo: &blake3::Hash,
        model: &str,
        features: Option<Vec<f32>>,
    ) -> Result<Vec<NearPhoto>> {
        let hash: ContentHash = photo.to_hex().as_str().parse()?;
        let ask =
            |probe| self.store.similar(&Similar { probe, limit: LOOKED_AT, min_score: MIN_SCORE });
        let neighbours = match (ask(Probe::Asset(hash)), features.filter(|f| library::usable(f))) {
            (Ok(neighbours), _) => neighbours,
            (Err(error), _) if error.kind() != ErrorKind::NotFound => return Err(error),
            // The library does not know how the photo looks, but the model does.
            (Err(_), Some(vector)) if !model.is_empty() => {
                let features = Features { space: model.to_owned(), vector };
                match ask(Probe::Features(features)) {
                    Ok(neighbours) => neighbours,
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                    Err(error) => return Err(error),
                }
            }
            (Err(_), _) => return Ok(Vec::new()),
        };
        let mut found = Vec::new();
        for neighbour in neighbours {
            if neighbour.hash != hash {
                found.extend(self.accepted(neighbour)?);
            }
            if found.len() == COUNTED {
                break;
            }
        }
        Ok(found)
    }
}

//! Photos that look the same. It works with any [`Store`].

use std::cmp::Reverse;

use cutline_error::Result;
use serde::Serialize;
use utoipa::ToSchema;

use crate::store::Store;
use crate::types::ContentHash;

/// Groups of photos that look the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Duplicates {
    /// Some of the groups. In each, the photo with the most pixels and bytes comes first.
    pub groups: Vec<Vec<Duplicate>>,
    /// How many groups there are.
    pub total: u64,
}

/// A photo that looks like others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Duplicate {
    /// The photo.
    #[schema(value_type = String)]
    pub hash: ContentHash,
    /// The name to show.
    pub name: String,
    /// Width in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Bytes of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// At most `limit` groups after the first `skip`, of photos whose difference hashes differ in at most
/// `max_bits` bits from one to the next.
///
/// # Errors
/// As [`Store::near_duplicates`].
pub fn find(store: &dyn Store, max_bits: u32, skip: usize, limit: usize) -> Result<Duplicates> {
    let all = store.near_duplicates(max_bits)?;
    let total = all.len() as u64;
    let mut groups = Vec::new();
    for hashes in all.iter().skip(skip).take(limit) {
        let mut group = Vec::with_capacity(hashes.len());
        for hash in hashes {
            // It may have been removed meanwhile.
            let Some(asset) = store.asset(hash)? else { continue };
            let (width, height, bytes) = (asset.width, asset.height, asset.bytes);
            group.push(Duplicate { hash: *hash, name: asset.display_name(), width, height, bytes });
        }
        group.sort_by_key(|photo| {
            let pixels = u64::from(photo.width.unwrap_or(0)) * u64::from(photo.height.unwrap_or(0));
            Reverse((pixels, photo.bytes))
        });
        if group.len() > 1 {
            groups.push(group);
        }
    }
    Ok(Duplicates { groups, total })
}

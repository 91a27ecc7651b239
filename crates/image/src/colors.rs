//! Colours and mood together: what is known of an image beside its captions.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::color::{self, DominantColor};
use super::decode::DecodedImage;
use super::mood::Mood;
use super::thumbnail::thumbnail;

/// The dominant colours of an image and how they are felt. Plain data, which a cache can keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Colors {
    /// One to five colours, the one with the most pixels first.
    pub colors: Vec<DominantColor>,
    /// How these colours are felt.
    pub mood: Mood,
}

impl Colors {
    /// Looks at `image`. Takes a few milliseconds, however large it is: it sees a thumbnail.
    #[must_use]
    pub fn of(image: &DecodedImage) -> Self {
        let colors = color::dominant(&thumbnail(image));
        let mood = Mood::of(&colors);
        Self { colors, mood }
    }
}

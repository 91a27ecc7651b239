//! Tags from allowed lists.
//!
//! - A [`Vocabulary`] has categories, and each has the tags that are allowed in it, with other names of
//!   them. It is read from JSON or from lines of text, with limits on everything.
//! - A [`Source`] is a vocabulary itself, or the name of one in a library.
//! - `words` finds tags in captions ([`Matcher`]).
//! - `weights` makes one score of what is known about a tag, and `fit` finds weights that explain what
//!   people say.
//! - `choice` picks the best tags of each category ([`choose`]): never one that is not allowed, never more
//!   than the category takes, never one twice.
//! - `measure` compares tags with those that people gave.
//!
//! ```
//! use cutline_tags::{Matcher, Vocabulary};
//!
//! let vocabulary = Vocabulary::parse(b"[animals]\ndog: puppy, hound\ncat\n[food]\nhot dog\n")?;
//! let matcher = Matcher::new(&vocabulary);
//! let found = matcher.find("two puppies and a hot dog");
//! let names: Vec<&str> = found.iter().map(|found| vocabulary.tag(found.tag).name()).collect();
//! assert_eq!(names, ["dog", "hot dog"]);
//! # Ok::<(), cutline_error::Error>(())
//! ```

mod choice;
mod fit;
mod json;
mod lines;
mod measure;
mod source;
mod vocabulary;
mod weights;
mod words;

pub use choice::{Chosen, Limits, Scored, choose, violations};
pub use fit::{Example, Fitted, STRENGTH, fit, fit_photos};
pub use measure::{Measures, Photo, measure};
pub use source::{Reference, Source, check_name};
pub use vocabulary::{
    Category, FIELD, MAX_BYTES, MAX_CATEGORIES, MAX_K, MAX_NAMES, Tag, TagId, Template, Vocabulary,
};
pub use weights::{Hints, Weights};
pub use words::{Found, Matcher, rarest};

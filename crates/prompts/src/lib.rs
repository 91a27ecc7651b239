//! Prompts: what a photo's text is asked for with.
//!
//! - A [`Reference`] names a prompt, and one of its versions by number or by label.
//! - A [`Content`] is what a version says: a prefix, a style or a chain for BLIP, an instruction for a model
//!   that follows instructions. It is checked when it is saved.
//! - `template` renders text with variables: what is not given is an error, work and output are bounded, and
//!   there are no other templates to include.
//! - `assignment` gives each unit its variant of an experiment, always the same one ([`assign`]).
//! - `statistics` has intervals ([`wilson`], [`bootstrap`]); `report` says what an experiment shows, and
//!   gives no verdict before the planned number ([`report`]).
//!
//! ```
//! use cutline_prompts::{Content, Kind, Variables};
//!
//! let content = Content::new(Kind::Prefix, "a photo of a {{ breed }}");
//! let content = content.checked()?;
//! let variables: Variables = serde_json::from_str(r#"{"breed": "dachshund"}"#)?;
//! assert_eq!(content.render(&variables, &Variables::new())?, "a photo of a dachshund");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod assignment;
mod content;
mod difference;
mod reference;
mod report;
mod statistics;
mod template;

pub use assignment::{BUCKETS, assign, bucket};
pub use content::{Content, Kind, Variable, VariableKind, Variables};
pub use difference::{Part, PartKind, difference};
pub use reference::{Reference, Which, check_label, check_name};
pub use report::{Arm, Decision, Estimate, Metric, Outcome, Report, Verdict, report};
pub use statistics::{Interval, bootstrap, bootstrap_difference, difference_of_shares, wilson};
pub use template::{MAX_TEMPLATE, render, variables_of};

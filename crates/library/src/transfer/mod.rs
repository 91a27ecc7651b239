//! Import and export: JSON Lines, CSV, COCO, and files beside photos.

mod export;
mod import;
mod rows;
mod sidecar;

use std::borrow::Cow;

pub use self::export::{Format, export, export_xmp};
pub use self::import::{ImportReport, Importer};

/// A cell of a table. If a spreadsheet would take it for a formula, an apostrophe precedes it, and another
/// one if it looks like such a cell already, so that [`unguarded`] is exact. `cutline caption` writes the
/// same.
fn guarded(text: &str) -> Cow<'_, str> {
    if is_formula(text) { format!("'{text}").into() } else { text.into() }
}

/// The text of a cell that [`guarded`] wrote.
fn unguarded(cell: &str) -> &str {
    cell.strip_prefix('\'').filter(|text| is_formula(text)).unwrap_or(cell)
}

fn is_formula(text: &str) -> bool {
    text.trim_start_matches('\'')
        .starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'])
}

//! Checks what was downloaded before it becomes part of a model: a hub, or a proxy in front of it, may
//! send something else than the file.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::engine::layout::{self, SMALL};
use crate::text;
use cutline_blip::weights::CheckedFile;
use cutline_error::{Error, Result};

/// Checks the bytes at `path`, which `url` sent for `file`.
///
/// # Errors
/// They are a web page, do not have the SHA-256 that is their `etag`, or are not JSON if they should be.
pub(super) fn content(url: &str, file: &str, etag: &str, path: &Path) -> Result<()> {
    // An empty file is refused, if it matters, when the model is opened.
    if path.metadata().is_ok_and(|known| known.len() == 0) {
        return Ok(());
    }
    let wrong = |what: &str| {
        Error::model(format!(
            "{url} does not give {file}: it {what}; check HF_ENDPOINT and the proxy, or download the \
             model elsewhere and set MODEL to its folder"
        ))
    };
    let content = CheckedFile::open(path)
        .map_err(|error| wrong("is a web page or a placeholder").with_source(error))?;
    // Files in Git LFS have the SHA-256 of their content as etag; others have a SHA-1 of git.
    if is_sha256(etag) {
        let mut hasher = Sha256::new();
        content.pieces(&mut |piece| hasher.update(piece))?;
        let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if !found.eq_ignore_ascii_case(etag) {
            return Err(wrong("does not have the SHA-256 that the hub announced"));
        }
    }
    if file.ends_with(".json") {
        let bytes = content.read_all(SMALL)?;
        let bytes = text::without_mark(&bytes).map_err(wrong)?;
        layout::check_json(file, bytes).map_err(|error| wrong("is not JSON").with_source(error))?;
    }
    Ok(())
}

fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

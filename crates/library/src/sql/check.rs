//! What no correct library has.

use cutline_error::Result;

use super::Db;

/// Problems that are listed.
pub(crate) const LISTED: usize = 100;

/// Each query finds the offending photos.
const RULES: [(&str, &str); 5] = [
    (
        "a current text of another photo, or that is only suggested",
        "SELECT c.asset_id FROM current c JOIN revisions r ON r.id = c.revision_id \
         WHERE r.asset_id IS DISTINCT FROM c.asset_id OR r.field IS DISTINCT FROM c.field \
         OR r.lang IS DISTINCT FROM c.lang OR r.action IN (1, 3)",
    ),
    (
        "a suggestion of another photo",
        "SELECT c.asset_id FROM current c JOIN revisions r ON r.id = c.suggestion_id \
         WHERE r.asset_id IS DISTINCT FROM c.asset_id OR r.field IS DISTINCT FROM c.field \
         OR r.action IS DISTINCT FROM 1",
    ),
    (
        "a text of a model in place of one that a person decided about",
        "SELECT c.asset_id FROM current c JOIN revisions r ON r.id = c.revision_id \
         JOIN authors a ON a.id = r.author_id JOIN revisions p ON p.id = r.previous_id \
         WHERE a.kind = 0 AND r.action = 0 AND p.reviewed AND NOT r.reviewed",
    ),
    (
        "a label that is not counted",
        "SELECT l.id FROM labels l WHERE l.uses IS DISTINCT FROM \
         (SELECT count(*) FROM asset_labels x WHERE x.label_id = l.id)",
    ),
    (
        "a label of a photo that is gone",
        "SELECT x.asset_id FROM asset_labels x \
         WHERE NOT EXISTS(SELECT 1 FROM assets s WHERE s.id = x.asset_id)",
    ),
];

/// What is wrong, each with a count. `failed` decides about an error: a problem to list, or a failure.
pub(crate) fn rules(
    db: &dyn Db,
    mut failed: impl FnMut(cutline_error::Error) -> Result<String>,
) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (name, sql) in RULES {
        match db.value::<i64>(&format!("SELECT count(*) FROM ({sql}) f"), &[]) {
            Ok(0) => {}
            Ok(count) => problems.push(format!("{count} times: {name}")),
            Err(error) => problems.push(failed(error)?),
        }
    }
    Ok(problems)
}

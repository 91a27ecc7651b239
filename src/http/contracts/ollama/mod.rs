//! Ollama's API: `answer` captions, `models` describes the model.
//!
//! Field names are those that Ollama's published clients read; its own extra fields are left out.

mod answer;
mod models;

use std::time::SystemTime;

use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use crate::http::auth::Access;
use crate::http::state::AppState;

pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    vec![
        (Access::CAPTION, routes!(answer::generate)),
        (Access::CAPTION, routes!(answer::chat)),
        (Access::Key, routes!(models::tags)),
        (Access::Key, routes!(models::show)),
        (Access::Key, routes!(models::ps)),
        (Access::Key, routes!(models::pull)),
        (Access::Key, routes!(models::version)),
    ]
}

/// The present time as clients of Ollama read it.
fn now() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

//! Other models and routes: the file of routes, and the keys that it names.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{RoutingOptions, RoutingSettings, ServerOptions, Values};
use crate::routing::ApiKey;
use cutline_error::{Error, ErrorKind, Result};
use cutline_route::{Backend, Config, MAX_BYTES};

/// The largest file with a key.
const MAX_KEY_BYTES: usize = 16 * 1024;

pub(super) fn settings(values: &Values) -> Result<RoutingSettings> {
    let RoutingOptions { models, max_model_bytes, routes_file } = values.read()?;
    let (routes, keys) = match &routes_file {
        Some(path) => {
            read_routes(path).map_err(|error| values.unusable("ROUTES_FILE", error.detail()))?
        }
        None => Default::default(),
    };
    let limit = values.read::<ServerOptions>()?.request_timeout;
    Ok(RoutingSettings {
        models: models.map(|models| models.0).unwrap_or_default(),
        max_weight_bytes: max_model_bytes,
        routes,
        file: routes_file,
        keys,
        // The last attempt ends before the request does, so that there is time for its answer.
        limit: limit.mul_f64(0.95),
    })
}

/// Reads a file of routes, and the keys that it names.
///
/// # Errors
/// [`Config`](ErrorKind::Config): one sentence that says what is wrong.
pub fn read_routes(path: &Path) -> Result<(Config, Vec<Option<ApiKey>>)> {
    let routes = Config::parse(&read(path, MAX_BYTES)?)?;
    let keys = routes.backends.iter().map(key).collect::<Result<_>>()?;
    Ok((routes, keys))
}

fn key(backend: &Backend) -> Result<Option<ApiKey>> {
    let name = &backend.name;
    let wrong = |why: String| Error::new(ErrorKind::Config, format!("backend '{name}': {why}"));
    let text = match (&backend.api_key_env, &backend.api_key_file) {
        (Some(variable), _) => env::var(variable)
            .map_err(|_| wrong(format!("there is no variable {variable} with its key; set it")))?,
        (None, Some(file)) => {
            read(Path::new(file), MAX_KEY_BYTES).map_err(|error| wrong(error.to_string()))?
        }
        (None, None) => return Ok(None),
    };
    ApiKey::new(&text).map(Some).map_err(|error| wrong(error.to_string()))
}

/// A text file of at most `most` bytes.
fn read(path: &Path, most: usize) -> Result<String> {
    let failed = |why: String| {
        let detail = format!("{} cannot be read ({why}); check the path", path.display());
        Error::new(ErrorKind::Config, detail)
    };
    let mut text = String::new();
    let opened = File::open(path).map_err(|error| failed(error.to_string()))?;
    let read = opened.take(most as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| failed(error.to_string()))?;
    if text.len() > most {
        return Err(failed(format!("it has more than {most} bytes")));
    }
    Ok(text)
}

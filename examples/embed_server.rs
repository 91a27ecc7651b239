//! Embeds the caption server in an axum application, under the prefix `/captions`:
//!
//! ```text
//! cargo run --release --example embed_server
//! curl -F image=@assets/cat.jpg http://127.0.0.1:8000/captions/caption/generate
//! ```

use std::error::Error;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use cutline::captioner::Captioner;
use cutline::config::{Settings, Values};
use cutline::http::AppState;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::new(&Values::of_process())?;
    let listener = TcpListener::bind((settings.host.as_str(), settings.port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    serve(listener, settings, async {
        let _ = tokio::signal::ctrl_c().await;
    })
    .await
}

/// Serves on `listener` until `shutdown` completes and the accepted requests are answered.
pub(crate) async fn serve(
    listener: TcpListener,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn Error>> {
    let state = AppState::new(settings.http);

    // The server answers from the start; captions are 503 `not_ready` until the model is loaded.
    let loading = state.clone();
    tokio::task::spawn_blocking(move || match Captioner::load(&settings.captioner) {
        Ok(captioner) => loading.ready(captioner),
        Err(error) => eprintln!("no captions: {error}"),
    });

    axum::serve(listener, site(state.clone()))
        .with_graceful_shutdown(async move {
            shutdown.await;
            // Refuses new captions while axum waits for the ones in progress.
            state.stop();
        })
        .await?;
    Ok(())
}

/// The whole site: your own routes, and the caption server below `/captions`.
fn site(captions: AppState) -> Router {
    Router::new()
        .route("/", get(async || Html("<a href=captions/health>Is the caption server up?</a>")))
        .nest("/captions", cutline::http::app(captions))
}

//! Sends photos to a server from many connections at once, as fast as it answers, and prints one line of
//! JSON: how many answers of each status there were, and how long they took.
//!
//! ```sh
//! cargo build --release --example load-client
//! target/release/examples/load-client 127.0.0.1:8000 /caption/generate CLIENTS SECONDS PHOTO..
//! ```
//!
//! Clients in Python end at some 2,000 requests per second; this one sends about as many per core as a
//! server that answers at once. It first warms up for three seconds, or half of the time if that is less.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

type Failure = Box<dyn Error + Send + Sync>;

struct Load {
    host: String,
    path: String,
    photos: Vec<Bytes>,
    /// Answers count between these two.
    begin: Instant,
    end: Instant,
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    statuses: BTreeMap<String, u64>,
    latencies: Vec<Duration>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, path, clients, seconds, photos @ ..] = &arguments[..] else {
        return Err("usage: load-client HOST:PORT PATH CLIENTS SECONDS PHOTO..".into());
    };
    if photos.is_empty() {
        return Err("give at least one photo".into());
    }
    let clients: usize = clients.parse()?;
    let seconds = Duration::try_from_secs_f64(seconds.parse()?)?;
    let photos = photos.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    let begin = Instant::now() + (seconds / 2).min(Duration::from_secs(3));
    let load = Arc::new(Load {
        host: host.clone(),
        path: path.clone(),
        photos: photos.into_iter().map(Bytes::from).collect(),
        begin,
        end: begin + seconds,
    });
    let tasks: Vec<_> =
        (0..clients).map(|number| tokio::spawn(client(Arc::clone(&load), number))).collect();
    let mut all = Seen::default();
    for task in tasks {
        let seen = task.await?;
        for (status, count) in seen.statuses {
            *all.statuses.entry(status).or_default() += count;
        }
        all.latencies.extend(seen.latencies);
    }
    println!("{}", all.report(seconds));
    Ok(())
}

/// Sends one photo after another until the time is over, on a new connection after each failure.
async fn client(load: Arc<Load>, number: usize) -> Seen {
    let mut seen = Seen::default();
    let mut connection = None;
    // Clients start at different photos.
    let mut turn = 97 * number;
    while Instant::now() < load.end {
        turn += 1;
        let started = Instant::now();
        let photo = load.photos[turn % load.photos.len()].clone();
        let status = match ask(&load, &mut connection, photo).await {
            Ok(status) => status.to_string(),
            Err(error) => {
                connection = None;
                tokio::time::sleep(Duration::from_millis(10)).await;
                error.to_string()
            }
        };
        let now = Instant::now();
        if (load.begin..load.end).contains(&now) {
            *seen.statuses.entry(status).or_default() += 1;
            seen.latencies.push(now - started);
        }
    }
    seen
}

/// The status of the answer, after all of it was read.
async fn ask(
    load: &Load,
    connection: &mut Option<SendRequest<Full<Bytes>>>,
    photo: Bytes,
) -> Result<u16, Failure> {
    let sender = match connection {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(&load.host).await?;
            stream.set_nodelay(true)?;
            let (sender, driver) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            connection.insert(sender)
        }
    };
    sender.ready().await?;
    let request = Request::post(load.path.as_str())
        .header(header::HOST, load.host.as_str())
        .header(header::CONTENT_TYPE, "image/jpeg")
        .body(Full::new(photo))?;
    let mut answer = sender.send_request(request).await?;
    while let Some(frame) = answer.body_mut().frame().await {
        frame?;
    }
    Ok(answer.status().as_u16())
}

impl Seen {
    fn report(mut self, seconds: Duration) -> String {
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let place = (share * self.latencies.len() as f64) as usize;
            self.latencies.get(place).map_or(0.0, |latency| 1e3 * latency.as_secs_f64())
        };
        serde_json::json!({
            "seconds": seconds.as_secs_f64(),
            "statuses": self.statuses,
            "latency_ms": at(0.5),
            "latency_99_ms": at(0.99),
        })
        .to_string()
    }
}

//! The cache that servers share, with a real Redis that is absent, stopped, killed, full, lying or silent.
//!
//! Without `redis-server` the tests say so and pass.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use cutline::cache::{CacheScope, Shared, SharedSettings};
use cutline::captioner::MemoryLimits;
use cutline::metrics::{Metrics, ServerSnapshot};
use tempfile::TempDir;

use super::fixture::{Fixture, distinct, eventually, post};

const SECRET: &str = "a secret of tests";
/// More than a call needs on a busy machine.
const PATIENT: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(25);

/// A private server of Redis.
struct Redis {
    child: Child,
    port: u16,
    options: Vec<&'static str>,
    _folder: TempDir,
}

impl Redis {
    /// `None` if the program is not installed.
    fn start(options: &[&'static str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let spawned = spawn(port, &folder, options);
        let Ok(child) = spawned else {
            eprintln!("skipped: redis-server is not installed");
            return None;
        };
        let redis = Self { child, port, options: options.to_vec(), _folder: folder };
        redis.wait();
        Some(redis)
    }

    /// The same server again, without its values.
    fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self._folder, &self.options).unwrap();
        self.wait();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn wait(&self) {
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(60), "Redis does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(self.address()).unwrap();
        let mut connection = client.get_connection().unwrap();
        redis::cmd(command[0]).arg(&command[1..]).query(&mut connection).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.ask(&["KEYS", "*"])
    }

    async fn has(&self, values: usize) {
        let begin = Instant::now();
        while self.names().len() < values {
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is stored");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, folder: &TempDir, options: &[&str]) -> std::io::Result<Child> {
    Command::new(std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".into()))
        .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(folder.path())
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server with the scripted model and this shared cache.
struct Replica {
    fixture: Fixture,
    metrics: Metrics,
}

impl Replica {
    fn new(address: &str, secret: &str, timeout: Duration) -> Self {
        let fixture = Fixture::roomy(64, MemoryLimits::default());
        let metrics = Metrics::new();
        let settings = SharedSettings {
            address: address.into(),
            secret: secret.into(),
            timeout,
            time_to_live: Duration::from_secs(1000),
            scope: CacheScope::Exact,
        };
        let shared = Shared::new(&settings, metrics.clone()).unwrap();
        fixture.captioner.share_with(shared, CacheScope::Exact);
        Self { fixture, metrics }
    }

    /// The answer's `cache`; it is always 200 and always the same caption.
    async fn ask(&self, photo: u32, query: &str) -> String {
        let answer = self.fixture.send(post(query, "image/png", distinct(photo))).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.json()["caption"], "a red square");
        answer.json()["cache"].as_str().unwrap().to_owned()
    }

    fn count(&self, series: &str) -> u64 {
        let text = self.metrics.render(ServerSnapshot::default());
        let line = text.lines().find_map(|line| line.strip_prefix(series)).unwrap();
        line.trim().parse().unwrap()
    }

    fn errors(&self, reason: &str) -> u64 {
        self.count(&format!("cutline_shared_cache_errors_total{{reason=\"{reason}\"}}"))
    }

    /// Forty different photos, one after the other: no request fails, and the breaker soon stops asking.
    async fn survives(&self, what: &str, first: u32) {
        let begin = Instant::now();
        for photo in first..first + 40 {
            assert_eq!(self.ask(photo, "").await, "miss", "{what}");
        }
        // Five open it, some writes may be on their way, and then there is a probe a second at most.
        let failed = self.errors("timeout") + self.errors("failed");
        let most = 12 + begin.elapsed().as_secs();
        assert!((1..=most).contains(&failed), "{what}: {failed} calls failed, {most} may");
    }
}

#[tokio::test]
async fn an_answer_is_computed_once_for_all_servers() {
    let Some(redis) = Redis::start(&[]) else { return };
    let [one, two] = [0, 1].map(|_| Replica::new(&redis.address(), SECRET, PATIENT));
    assert_eq!(one.ask(1, "").await, "miss");
    redis.has(1).await;
    let photo = || post("?colors=true", "image/png", distinct(1));
    let [mut first, mut second] =
        [one.fixture.send(photo()).await.json(), two.fixture.send(photo()).await.json()];
    for answer in [&mut first, &mut second] {
        assert_eq!(answer["cache"], "hit");
        answer["timings"].take();
    }
    assert_eq!(first, second, "the answers differ only in their times");
    assert_eq!((one.fixture.script.starts(), two.fixture.script.starts()), (1, 0));
    assert_eq!(two.count("cutline_cache_lookups_total{cache=\"shared\",result=\"hit\"}"), 1);
    // From now on it is in the second server's own cache.
    assert_eq!(two.ask(1, "").await, "hit");
    assert_eq!(two.count("cutline_cache_lookups_total{cache=\"shared\",result=\"hit\"}"), 1);
    // Bypass neither reads nor writes, refresh only writes.
    assert_eq!(two.ask(1, "?cache=bypass").await, "miss");
    assert_eq!(redis.names().len(), 1);
    assert_eq!(two.ask(1, "?cache=refresh").await, "miss");
    assert_eq!(two.fixture.script.starts(), 2);
    let name = redis.names().remove(0);
    let left: u64 = redis.ask(&["PTTL", &name]);
    assert!((800_000..=1_100_000).contains(&left), "{left} ms");
}

#[tokio::test]
async fn only_holders_of_the_secret_find_or_plant_a_caption() {
    let Some(redis) = Redis::start(&[]) else { return };
    let one = Replica::new(&redis.address(), SECRET, PATIENT);
    assert_eq!(one.ask(1, "").await, "miss");
    redis.has(1).await;
    let stranger = Replica::new(&redis.address(), "some other secret", PATIENT);
    assert_eq!(stranger.ask(1, "").await, "miss");
    redis.has(2).await;
    assert_eq!(stranger.errors("invalid"), 0, "it has another name");
    // Whoever can write puts the value of one photo in the place of another, changes a byte, and cuts.
    assert_eq!(one.ask(2, "").await, "miss");
    redis.has(3).await;
    let names = redis.names();
    let values: Vec<Vec<u8>> = names.iter().map(|name| redis.ask(&["GET", name])).collect();
    let client = redis::Client::open(redis.address()).unwrap();
    let mut connection = client.get_connection().unwrap();
    for change in 0..3 {
        let mut planted = Vec::new();
        for (name, (own, other)) in
            names.iter().zip(values.iter().zip(values.iter().cycle().skip(1)))
        {
            let mut changed = own.clone();
            match change {
                0 => changed.clone_from(other),
                1 => *changed.last_mut().unwrap() ^= 1,
                _ => drop(changed.pop()),
            }
            redis::cmd("SET").arg(name).arg(&changed).exec(&mut connection).unwrap();
            planted.push(changed);
        }
        let reader = Replica::new(&redis.address(), SECRET, PATIENT);
        assert_eq!(reader.ask(1, "").await, "miss", "change {change}");
        assert_eq!(reader.errors("invalid"), 1, "change {change}");
        assert_eq!(reader.fixture.script.starts(), 1);
        // What it computed instead replaces the planted value, in the background.
        let read = |name: &String| redis.ask::<Vec<u8>>(&["GET", name]);
        eventually("the planted value is replaced", || {
            names.iter().zip(&planted).any(|(name, planted)| read(name) != *planted)
        })
        .await;
    }
}

#[tokio::test]
async fn a_redis_of_other_programs_is_survived() {
    let Some(redis) = Redis::start(&[]) else { return };
    let one = Replica::new(&redis.address(), SECRET, PATIENT);
    assert_eq!(one.ask(1, "").await, "miss");
    redis.has(1).await;
    let name = redis.names().remove(0);
    let _: i64 = redis.ask(&["DEL", &name]);
    let _: i64 = redis.ask(&["RPUSH", &name, "a list"]);
    let reader = Replica::new(&redis.address(), SECRET, PATIENT);
    assert_eq!(reader.ask(1, "").await, "miss");
    assert_eq!(reader.errors("failed"), 1, "the wrong type");
    // A huge value is not read to its end.
    let client = redis::Client::open(redis.address()).unwrap();
    let mut connection = client.get_connection().unwrap();
    redis::cmd("SET").arg(&name).arg(vec![7_u8; 8 << 20]).exec(&mut connection).unwrap();
    let reader = Replica::new(&redis.address(), SECRET, PATIENT);
    assert_eq!(reader.ask(1, "").await, "miss");
    assert_eq!(reader.errors("invalid"), 1);
}

#[tokio::test]
async fn a_full_redis_is_still_read() {
    let Some(redis) = Redis::start(&["--maxmemory-policy", "noeviction"]) else { return };
    let one = Replica::new(&redis.address(), SECRET, PATIENT);
    assert_eq!(one.ask(1, "").await, "miss");
    redis.has(1).await;
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    for photo in 2..32 {
        assert_eq!(one.ask(photo, "").await, "miss");
    }
    let reader = Replica::new(&redis.address(), SECRET, PATIENT);
    assert_eq!(reader.ask(1, "").await, "hit");
    assert_eq!(redis.names().len(), 1);
}

#[tokio::test]
async fn a_redis_that_is_absent_or_refuses_us_is_left_alone() {
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    Replica::new(&nobody, SECRET, PATIENT).survives("absent", 1).await;
    let Some(redis) = Redis::start(&["--requirepass", "right"]) else { return };
    let wrong = format!("redis://:wrong@127.0.0.1:{}", redis.port);
    Replica::new(&wrong, SECRET, PATIENT).survives("wrong password", 1).await;
}

#[tokio::test]
async fn a_user_with_two_rights_is_enough() {
    let Some(redis) = Redis::start(&[]) else { return };
    // As docs/scale.md has it.
    let rights = ["ACL", "SETUSER", "cutline", "on", ">word", "~cutline:*", "+getrange", "+set"];
    let _: String = redis.ask(&rights);
    let address = format!("redis://cutline:word@127.0.0.1:{}", redis.port);
    let [one, two] = [0, 1].map(|_| Replica::new(&address, SECRET, PATIENT));
    assert_eq!(one.ask(1, "").await, "miss");
    redis.has(1).await;
    assert_eq!(two.ask(1, "").await, "hit");
    assert_eq!(one.errors("failed") + two.errors("failed"), 0);
}

#[tokio::test]
async fn a_black_hole_costs_a_few_timeouts() {
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hole.local_addr().unwrap().port();
    // Accepts and reads, and never answers.
    std::thread::spawn(move || {
        for stream in hole.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
            });
        }
    });
    let one = Replica::new(&format!("redis://127.0.0.1:{port}"), SECRET, SHORT);
    one.survives("black hole", 1).await;
    assert!(one.errors("timeout") > 0);
}

#[tokio::test]
async fn a_redis_that_stops_and_one_that_dies_are_used_again_when_they_are_back() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let one = Replica::new(&redis.address(), SECRET, SHORT);
    one.ask(1, "").await;
    redis.signal("-STOP");
    one.survives("stopped", 100).await;
    redis.signal("-CONT");
    used_again(&one, &redis, 200).await;
    redis.kill();
    one.survives("killed", 300).await;
    redis.restart();
    used_again(&one, &redis, 400).await;
}

/// Asks for new photos until one of them is stored.
async fn used_again(replica: &Replica, redis: &Redis, first: u32) {
    let before = redis.names().len();
    let begin = Instant::now();
    for photo in first.. {
        replica.ask(photo, "").await;
        if redis.names().len() > before {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(90), "it is not used again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

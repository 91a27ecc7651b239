//! The client of the shared cache.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ErrorKind as RedisKind, FromRedisValue, RedisError, RedisResult};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::SharedSettings;
use super::breaker::{Breaker, Change, Permit};
use super::seal::Seal;
use crate::cache::Key;
use crate::metrics::{CacheName, Lookup, Metrics, SharedCacheError};
use cutline_error::{Error, ErrorKind, Result};

/// The largest value, sealed. An answer has some hundred bytes; more than this is not read either,
/// whoever wrote it.
const MAX_BYTES: usize = 64 << 10;

/// Values that are being written at a time. Others are dropped: they can be computed again.
const WRITES: usize = 64;

/// How long one attempt to connect may take, in the background.
const CONNECT: Duration = Duration::from_secs(2);

/// A name that has no value, for probes.
const NOTHING: &str = "cutline:1:";

/// A cache that several servers share. Cheap to clone.
#[derive(Clone)]
pub struct Shared {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    /// Replaced by each probe that works: a connection to a machine that is gone would be tried for minutes.
    connection: Mutex<ConnectionManager>,
    seal: Seal,
    timeout: Duration,
    time_to_live: Duration,
    breaker: Mutex<Breaker>,
    writes: Arc<Semaphore>,
    metrics: Metrics,
}

impl Shared {
    /// A client that connects when it is first used. It must be made within a runtime.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): the address cannot be used.
    pub fn new(settings: &SharedSettings, metrics: Metrics) -> Result<Self> {
        let unusable = |error: RedisError| {
            // The cause may repeat the address, and with it the password.
            let detail = format!(
                "CACHE_URL cannot be used ({}); give redis://USER:PASSWORD@HOST:PORT, or rediss:// for TLS",
                error.category()
            );
            Error::new(ErrorKind::Config, detail)
        };
        let client = Client::open(settings.address.as_str()).map_err(unusable)?;
        let connection = Mutex::new(connect(&client).map_err(unusable)?);
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                connection,
                seal: Seal::new(&settings.secret),
                timeout: settings.timeout,
                time_to_live: settings.time_to_live,
                breaker: Mutex::new(Breaker::new()),
                writes: Arc::new(Semaphore::new(WRITES)),
                metrics,
            }),
        })
    }

    /// The value of `key`. `None` if there is none, if it cannot be had in time, or if it is not ours.
    pub async fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let inner = &self.inner;
        let name = inner.seal.name(key);
        let sealed: Vec<u8> = inner.call(&read(&name, MAX_BYTES)).await?;
        // GETRANGE knows no difference between a value that is missing and one that is empty.
        let found = if sealed.is_empty() {
            None
        } else {
            let value = inner.seal.open(&name, &sealed).map(<[u8]>::to_vec);
            if value.is_none() {
                inner.metrics.shared_cache_error(SharedCacheError::Invalid);
            }
            value
        };
        let result = if found.is_some() { Lookup::Hit } else { Lookup::Miss };
        inner.metrics.lookup(CacheName::Shared, result);
        found
    }

    /// Stores a value in the background. It is lost if too many are on their way, or if that fails.
    pub fn put(&self, key: &Key, value: &[u8]) {
        let inner = Arc::clone(&self.inner);
        let Ok(permit) = Arc::clone(&inner.writes).try_acquire_owned() else { return };
        let name = inner.seal.name(key);
        let sealed = inner.seal.close(&name, value);
        if sealed.len() > MAX_BYTES {
            return;
        }
        let milliseconds = inner.lifetime(&sealed).as_millis();
        let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX).max(1);
        tokio::spawn(async move {
            let mut command = redis::cmd("SET");
            command.arg(&name).arg(sealed).arg("PX").arg(milliseconds);
            let _: Option<()> = inner.call(&command).await;
            drop(permit);
        });
    }

    /// Whether the breaker refuses calls.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.inner.breaker.lock().is_open()
    }
}

impl Inner {
    /// The answer to a command, in time.
    async fn call<T: FromRedisValue>(self: &Arc<Self>, command: &Cmd) -> Option<T> {
        let permit = self.breaker.lock().permit(Instant::now());
        match permit {
            Permit::Call => {}
            Permit::Probe => {
                tokio::spawn(Arc::clone(self).probe());
                return None;
            }
            Permit::Refuse => return None,
        }
        let mut connection = self.connection.lock().clone();
        let result = timeout(self.timeout, command.query_async(&mut connection)).await;
        self.report(result.ok())
    }

    /// Connects anew, and asks for nothing. Takes its time, as no request waits for it.
    async fn probe(self: Arc<Self>) {
        let command = read(NOTHING, 0);
        let answer = async {
            let mut connection = connect(&self.client)?;
            let result: RedisResult<Vec<u8>> = command.query_async(&mut connection).await;
            *self.connection.lock() = connection;
            result
        };
        let result = timeout(CONNECT, answer).await;
        self.report(result.ok());
    }

    /// Counts a result, `None` for one that did not come in time.
    fn report<T>(&self, result: Option<RedisResult<T>>) -> Option<T> {
        let error = match result {
            Some(Ok(value)) => {
                note(self.breaker.lock().succeeded(), None);
                return Some(value);
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        let kind = match &error {
            Some(_) => SharedCacheError::Failed,
            None => SharedCacheError::Timeout,
        };
        self.metrics.shared_cache_error(kind);
        let change = if error.as_ref().is_some_and(is_answer) {
            self.breaker.lock().succeeded()
        } else {
            self.breaker.lock().failed(Instant::now())
        };
        note(change, error.as_ref());
        None
    }

    /// The time to live give or take a tenth, so that values that were made together do not expire
    /// together. The first byte of a MAC is as good as a random number.
    fn lifetime(&self, sealed: &[u8]) -> Duration {
        let byte = sealed.first().copied().unwrap_or(128);
        self.time_to_live.mul_f64(0.9 + 0.2 * f64::from(byte) / 255.0)
    }
}

/// Logs that the breaker opened or closed.
fn note(change: Change, error: Option<&RedisError>) {
    match change {
        Change::Opened => {
            let cause = error.map_or("no answer in time", RedisError::category);
            tracing::warn!(cause, "the shared cache fails and is left alone for a while");
        }
        Change::Closed => tracing::info!("the shared cache answers again"),
        Change::None => {}
    }
}

/// A connection that is made when it is first used. The breaker decides when to try again.
fn connect(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(CONNECT))
        .set_number_of_retries(0);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// Reads at most the first `bytes` of a value, and one more.
fn read(name: &str, bytes: usize) -> Cmd {
    let mut command = redis::cmd("GETRANGE");
    command.arg(name).arg(0).arg(bytes);
    command
}

/// Whether the server itself sent this error. Then it is there and fast, and one value of a wrong type, or
/// a memory that is full, is no reason to leave it alone.
fn is_answer(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        RedisKind::Server(_) | RedisKind::Extension | RedisKind::UnexpectedReturnType
    )
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

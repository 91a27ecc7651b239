//! The signals that ask the program to stop, and the one that asks it to read a file again.

use tokio::sync::mpsc;

use cutline_error::{Error, Result};

/// The exit status after SIGTERM that shells expect.
pub(super) const TERMINATED: u8 = 128 + 15;

/// The signals that ask a process to stop.
#[derive(Debug)]
pub(super) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub(super) fn new() -> Result<Self> {
        use tokio::signal::unix::SignalKind;
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal. Returns the exit status that shells expect for it.
    #[cfg(unix)]
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => TERMINATED,
            _ = self.interrupt.recv() => 128 + 2,
        }
    }

    #[cfg(not(unix))]
    pub(super) fn new() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    pub(super) async fn next(&mut self) -> u8 {
        if tokio::signal::ctrl_c().await.is_err() {
            // There are no signals; only killing the process stops it.
            std::future::pending::<()>().await;
        }
        1
    }
}

#[cfg(unix)]
fn listen(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(kind).map_err(|error| {
        Error::internal("the signal handlers cannot be installed").with_source(error)
    })
}

/// A message for each SIGHUP, if they are `wanted`; several at once may be one. Otherwise SIGHUP ends the
/// program, as when its terminal is closed.
pub(super) fn reloads(wanted: bool) -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(1);
    #[cfg(unix)]
    if wanted {
        let mut hangups = listen(tokio::signal::unix::SignalKind::hangup())?;
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                let _ = sender.try_send(());
            }
        });
    }
    #[cfg(not(unix))]
    let _ = (wanted, sender);
    Ok(receiver)
}

//! What a module shares with the process that loads it.

use std::ffi::OsString;
use std::process::{self, ExitCode};
use std::sync::OnceLock;
use std::time::Duration;

use cutline::error::{Error, ErrorKind, Result};
use pyo3::prelude::*;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pyo3::import_exception!(cutline._errors, CutlineError);

/// How long Ctrl-C may have to wait.
const INTERRUPTS: Duration = Duration::from_millis(50);

/// The process whose threads compute.
static OWNER: OnceLock<u32> = OnceLock::new();

/// Whether this process was forked from the one with the threads. It has none of them then, and whoever
/// waits for one waits for ever.
pub(crate) fn is_forked() -> bool {
    OWNER.get().is_some_and(|owner| *owner != process::id())
}

/// Refuses work in a forked process, and from now on in those that are forked from this one.
///
/// # Errors
/// This process was forked after another call.
pub(crate) fn claim() -> PyResult<()> {
    OWNER.get_or_init(process::id);
    if !is_forked() {
        return Ok(());
    }
    Err(raised(&Error::new(
        ErrorKind::Unsupported,
        "this process was forked from one that has a captioner, and threads do not survive a fork; start \
         processes with spawn or forkserver, or make the first captioner after the fork",
    )))
}

/// The exception for an error.
pub(crate) fn raised(error: &Error) -> PyErr {
    let parts = (error.detail().to_owned(), error.kind().code(), error.field().map(str::to_owned));
    CutlineError::new_err(parts)
}

/// Waits for `task`, and lets other threads of Python run meanwhile. After Ctrl-C the task is cancelled.
///
/// # Errors
/// That of the task, or `KeyboardInterrupt`.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    runtime: &Handle,
    mut task: JoinHandle<Result<T>>,
) -> PyResult<T> {
    loop {
        let task = &mut task;
        let ended =
            py.detach(|| runtime.block_on(async { tokio::time::timeout(INTERRUPTS, task).await }));
        match ended {
            Ok(Ok(result)) => return result.map_err(|error| raised(&error)),
            Ok(Err(crash)) => {
                let error = Error::internal("captioning crashed, which is a defect; report it");
                return Err(raised(&error.with_source(crash)));
            }
            Err(_) => py.check_signals()?,
        }
    }
}

/// Runs the command line. Returns the exit status.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    let code = py.detach(|| cutline::cli::main_with(arguments));
    // There is no way back from an `ExitCode` to its number.
    (0..=u8::MAX).find(|status| ExitCode::from(*status) == code).unwrap_or(1)
}

//! Metrics of this process, read from `/proc` on Linux: the ones that every Prometheus client exports,
//! under their usual names.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::snapshot::MetricWriter;

/// Resident memory of this process in bytes, where the system reports it.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let status = procfs::process::Process::myself().ok()?.status().ok()?;
        status.vmrss.map(|kilobytes| kilobytes * 1024)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// The most resident memory of this process so far in bytes, where the system reports it.
#[must_use]
pub fn peak_resident_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let status = procfs::process::Process::myself().ok()?.status().ok()?;
        status.vmhwm.map(|kilobytes| kilobytes * 1024)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Resources that the process uses.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ProcessMetrics {
    cpu_seconds: f64,
    start_time_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl ProcessMetrics {
    /// `None` where the system does not report them.
    #[cfg(target_os = "linux")]
    pub(super) fn read() -> Option<Self> {
        let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        let booted = procfs::boot_time_secs().ok()? as f64;
        // One of the entries is the folder that is being read.
        let open_fds =
            std::fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1) as u64);
        Some(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            start_time_seconds: booted + seconds(stat.starttime),
            resident_bytes: stat.rss * procfs::page_size(),
            virtual_bytes: stat.vsize,
            threads: u64::try_from(stat.num_threads).ok()?,
            open_fds,
            max_fds: max_descriptors(),
        })
    }

    /// Other systems do not report them.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn read() -> Option<Self> {
        None
    }
}

/// How many file descriptors this process may have, where the system limits and reports it.
#[must_use]
pub fn max_descriptors() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        use procfs::process::{LimitValue, Process};

        match Process::myself().ok()?.limits().ok()?.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most),
            LimitValue::Unlimited => None,
        }
    }
    #[cfg(not(target_os = "linux"))]
    None
}

impl Collector for ProcessMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut write = MetricWriter(encoder);
        write.seconds_counter(
            "process_cpu_seconds",
            "Processor time in user and system mode.",
            self.cpu_seconds,
        )?;
        write.gauge(
            "process_start_time_seconds",
            "Start of the process, in seconds since 1970.",
            self.start_time_seconds,
        )?;
        write.gauge("process_resident_memory_bytes", "Resident memory.", self.resident_bytes)?;
        write.gauge("process_virtual_memory_bytes", "Virtual memory.", self.virtual_bytes)?;
        write.gauge("process_threads", "Threads of the process.", self.threads)?;
        if let Some(open) = self.open_fds {
            write.gauge("process_open_fds", "Open file descriptors.", open)?;
        }
        if let Some(most) = self.max_fds {
            write.gauge("process_max_fds", "Limit on open file descriptors.", most)?;
        }
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        let process = ProcessMetrics::read().unwrap();
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes > process.resident_bytes);
        assert!(process.threads > 0 && process.open_fds.unwrap() > 2);
        assert!(process.max_fds.is_none_or(|most| most >= process.open_fds.unwrap()));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - process.start_time_seconds;
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}

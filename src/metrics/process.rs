//! What the system knows of this process, where it has `/proc`: the metrics that every Prometheus
//! client exports, under their usual names.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::snapshot::MetricWriter;

/// What the process has used.
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
    /// `None` where the system does not tell.
    pub(super) fn read() -> Option<Self> {
        let text = |path: &str| fs::read_to_string(path).ok();
        let units = Units::of(&fs::read("/proc/self/auxv").ok()?)?;
        let mut process = Self::of(&text("/proc/self/stat")?, &text("/proc/stat")?, units)?;
        // One of them is the folder that is being read.
        let folder = fs::read_dir("/proc/self/fd").ok();
        process.open_fds = folder.map(|files| files.count().saturating_sub(1) as u64);
        process.max_fds = text("/proc/self/limits").and_then(|limits| max_fds(&limits));
        Some(process)
    }

    /// From the texts of `/proc/self/stat` and `/proc/stat`; see proc(5).
    fn of(own: &str, system: &str, units: Units) -> Option<Self> {
        // The second field is the program's name in brackets, which may hold anything.
        let (_, rest) = own.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first behind the name is the third of the table in proc(5).
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let booted = system.lines().find_map(|line| line.strip_prefix("btime "))?;
        let booted: f64 = booted.trim().parse().ok()?;
        let seconds = |ticks: u64| ticks as f64 / units.ticks_per_second as f64;
        Some(Self {
            cpu_seconds: seconds(field(14)? + field(15)?),
            start_time_seconds: booted + seconds(field(22)?),
            resident_bytes: field(24)? * units.page_bytes,
            virtual_bytes: field(23)?,
            threads: field(20)?,
            open_fds: None,
            max_fds: None,
        })
    }
}

/// In what the kernel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Units {
    ticks_per_second: u64,
    page_bytes: u64,
}

impl Units {
    /// From the auxiliary vector, pairs of machine words; see getauxval(3).
    fn of(auxv: &[u8]) -> Option<Self> {
        const PAGE_SIZE: usize = 6;
        const CLOCK_TICKS: usize = 17;
        const WORD: usize = size_of::<usize>();
        let word = |bytes: &[u8]| bytes.try_into().ok().map(usize::from_ne_bytes);
        let find = |wanted: usize| {
            let mut pairs = auxv.chunks_exact(2 * WORD);
            let pair = pairs.find(|pair| word(&pair[..WORD]) == Some(wanted))?;
            word(&pair[WORD..]).filter(|&value| value > 0).map(|value| value as u64)
        };
        Some(Self { ticks_per_second: find(CLOCK_TICKS)?, page_bytes: find(PAGE_SIZE)? })
    }
}

/// The soft limit in the text of `/proc/self/limits`; `None` where there is none.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
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
            write.gauge("process_open_fds", "File descriptors that are open.", open)?;
        }
        if let Some(most) = self.max_fds {
            write.gauge("process_max_fds", "File descriptors that may be open.", most)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        // A name with a bracket and spaces, to make it hard.
        let own = "42 (a b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 7 0 1000 2097152 \
                   30 18446744073709551615 1 1 0";
        let units = Units { ticks_per_second: 100, page_bytes: 4096 };
        let process =
            ProcessMetrics::of(own, "cpu 1 2\nbtime 1700000000\nprocesses 9\n", units).unwrap();
        let expected = ProcessMetrics {
            cpu_seconds: 3.0,
            start_time_seconds: 1_700_000_010.0,
            resident_bytes: 30 * 4096,
            virtual_bytes: 2_097_152,
            threads: 7,
            open_fds: None,
            max_fds: None,
        };
        assert_eq!(process, expected);
        assert_eq!(ProcessMetrics::of("42 (x) S 1", "btime 1\n", units), None);
        assert_eq!(ProcessMetrics::of(own, "cpu 1 2\n", units), None);
    }

    #[test]
    fn units_and_limits_are_read() {
        let words = [33_usize, 1, 17, 100, 6, 4096, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let units = Units { ticks_per_second: 100, page_bytes: 4096 };
        assert_eq!(Units::of(&bytes), Some(units));
        assert_eq!(Units::of(&bytes[..32]), None);
        let limits = "Limit   Soft Limit   Hard Limit   Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files            unlimited            unlimited"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_can_be_read() {
        let process = ProcessMetrics::read().unwrap();
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes > process.resident_bytes);
        assert!(process.threads > 0 && process.open_fds.unwrap() > 2);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - process.start_time_seconds;
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }
}

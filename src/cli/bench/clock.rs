//! One clock for all processes of a bench, and what the operating system says about them.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock, which every process of this machine reads the same.
pub(super) fn now() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// The time between two readings; none if the second lies before the first.
pub(super) fn between(from: i64, to: i64) -> Duration {
    Duration::from_nanos(u64::try_from(to - from).unwrap_or(0))
}

/// CPU seconds that a process has used; `None` if it is not there or not ours to see.
pub(super) fn cpu(pid: u32) -> Option<f64> {
    Some(seconds(Stat::of(pid)?.own))
}

/// CPU seconds of a process and of all its children, those that have ended included.
pub(super) fn cpu_with_children(pid: u32) -> Option<f64> {
    let parent = Stat::of(pid)?;
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let living = pids.filter_map(Stat::of).filter(|stat| stat.parent == pid).map(|stat| stat.own);
    Some(seconds(parent.own + parent.ended_children + living.sum::<u64>()))
}

/// The parent of a process, if both are programs of PostgreSQL.
pub(super) fn postmaster_of(backend: u32) -> Option<u32> {
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let parent = Stat::of(backend)?.parent;
    [backend, parent].iter().all(|&pid| name(pid).is_some_and(|name| name.starts_with("postgres"))).then_some(parent)
}

/// The most memory a process has had, in bytes.
pub(super) fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What `/proc/PID/stat` says; see proc(5). Times are in clock ticks.
struct Stat {
    parent: u32,
    own: u64,
    ended_children: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(1)?).ok()?,
            own: number(11)? + number(12)?,
            ended_children: number(13)? + number(14)?,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a process does not run for 2^53 ticks")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let begin = now();
        let own = std::process::id();
        let mut spent = 0u64;
        while cpu(own).unwrap() < 0.02 {
            spent = spent.wrapping_add(fastrand::u64(..));
        }
        assert!(cpu_with_children(own).unwrap() >= 0.02, "{spent}");
        assert!(peak_memory(own).unwrap() > 100_000);
        assert!(between(begin, now()) > Duration::ZERO);
        assert_eq!(between(now(), begin), Duration::ZERO);
        assert_eq!(postmaster_of(own), None);
        assert_eq!(cpu(0), None);
    }
}

//! What a process has used: processor time and memory, from `/proc`.

use std::fs;
use std::time::Duration;

/// Linux counts processor time in these for programs to read (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that the process has taken, of all its threads, in user and kernel mode.
pub fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name, in brackets, may hold blanks. Behind it stands the third field, the state.
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// Bytes of memory that the process holds now.
pub fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS:")
}

/// Most bytes of memory that the process ever held.
pub fn resident_peak(pid: u32) -> u64 {
    status(pid, "VmHWM:")
}

fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .expect("the field is there");
    let kib = line.trim().trim_end_matches("kB").trim();
    kib.parse::<u64>().expect("a number") * 1024
}

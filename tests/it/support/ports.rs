//! Free loopback ports.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports are taken from below the range that systems give to outgoing connections (32768 and up on
/// Linux): a server that is killed and restarted must find its port again, and a client that
/// hammers on it meanwhile must not connect to itself.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// How many ports this process has handed out.
static HANDED_OUT: AtomicU16 = AtomicU16::new(0);

/// A port that nothing listens on, not handed out by this process before. Someone else may still
/// take it before the caller does: start again with another one then.
pub fn free_port() -> u16 {
    let size = RANGE.end - RANGE.start;
    // Processes that run at the same time begin at different places.
    let scattered = u64::from(std::process::id()) * 7919 % u64::from(size);
    let first = u16::try_from(scattered).expect("smaller than the range");
    for _ in 0..size {
        let step = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        let port = RANGE.start + (first + step % size) % size;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {RANGE:?}");
}

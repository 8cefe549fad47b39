//! A way to a database server that can be cut in the middle of a commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What is kept of what was sent, for signs that come in two parts.
const SENT_BYTES: usize = 4096;

/// What happens to the next commit of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    /// It goes through.
    Not = 0,
    /// The server does not get it.
    Before = 1,
    /// The server gets it, and its answer gets lost.
    After = 2,
}

/// How a commit is known by what goes over the wire.
#[derive(Clone, Copy)]
pub struct Signs {
    /// Whether a batch is being committed, by the end of what was sent.
    pub commits: fn(&[u8]) -> bool,
    /// Whether the commit has happened, by what came back since.
    pub has_happened: fn(&[u8]) -> bool,
}

/// Listens on a port and leads to a server.
pub struct Cutter {
    port: u16,
    shared: Arc<Shared>,
    /// Ends with it.
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    next: AtomicU8,
    cuts: AtomicUsize,
    /// Nobody comes through any more from the next cut on.
    closes: AtomicBool,
}

impl Cutter {
    /// A way to the server of `url`.
    pub async fn start(url: &str, signs: Signs) -> Self {
        let server = host_of(url).to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let mut task = JoinSet::new();
        let of_task = shared.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if of_task.closes.load(Ordering::SeqCst) && of_task.cuts.load(Ordering::SeqCst) > 0
                {
                    continue;
                }
                let server = TcpStream::connect(&server).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                connections.spawn(lead(client, server, signs, of_task.clone()));
            }
        });
        Self {
            port,
            shared,
            _task: task,
        }
    }

    /// The URL that goes this way.
    pub fn url(&self, url: &str) -> String {
        url.replace(host_of(url), &format!("127.0.0.1:{}", self.port))
    }

    /// Cuts the connection of the next commit.
    pub fn cut_next(&self, cut: Cut) {
        self.shared.next.store(cut as u8, Ordering::SeqCst);
    }

    /// After the next cut nobody comes through, until [`Self::open`].
    pub fn close_behind(&self) {
        self.shared.closes.store(true, Ordering::SeqCst);
    }

    /// Everybody comes through again.
    pub fn open(&self) {
        self.shared.closes.store(false, Ordering::SeqCst);
    }

    /// How many were cut.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

/// Host and port.
fn host_of(url: &str) -> &str {
    let (_, rest) = url.split_once('@').unwrap();
    rest.split_once('/').unwrap().0
}

/// Passes everything on until one side ends the connection, or it is cut.
async fn lead(mut client: TcpStream, mut server: TcpStream, signs: Signs, shared: Arc<Shared>) {
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let (mut sent, mut swallowed) = (Vec::new(), Vec::new());
    let mut cut = Cut::Not;
    loop {
        tokio::select! {
            size = client.read(&mut asked) => {
                let Ok(size @ 1..) = size else { return };
                let part = &asked[..size];
                sent.extend_from_slice(part);
                if cut == Cut::Not && (signs.commits)(&sent) {
                    sent.clear();
                    cut = shared.take();
                }
                if cut == Cut::Before || server.write_all(part).await.is_err() {
                    return;
                }
                let keep = sent.len().saturating_sub(SENT_BYTES);
                sent.drain(..keep);
            }
            size = server.read(&mut answered) => {
                let Ok(size @ 1..) = size else { return };
                if cut == Cut::After {
                    swallowed.extend_from_slice(&answered[..size]);
                    if (signs.has_happened)(&swallowed) {
                        return;
                    }
                } else if client.write_all(&answered[..size]).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Shared {
    /// What happens to this commit.
    fn take(&self) -> Cut {
        let cut = match self.next.swap(0, Ordering::SeqCst) {
            1 => Cut::Before,
            2 => Cut::After,
            _ => return Cut::Not,
        };
        self.cuts.fetch_add(1, Ordering::SeqCst);
        cut
    }
}

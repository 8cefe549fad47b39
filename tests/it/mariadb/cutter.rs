//! A way to a server that can be cut in the middle of a commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What happens to the next commit of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cut {
    /// It goes through.
    Not = 0,
    /// The server does not get it.
    Before = 1,
    /// The server gets it, and its answer gets lost.
    After = 2,
}

/// Listens on a port and leads to a server.
pub(super) struct Cutter {
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
    pub(super) async fn start(url: &str) -> Self {
        let (server, _) = host_of(url);
        let server = server.to_owned();
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
                connections.spawn(lead(client, server, of_task.clone()));
            }
        });
        Self {
            port,
            shared,
            _task: task,
        }
    }

    /// The URL that goes this way.
    pub(super) fn url(&self, url: &str) -> String {
        let (server, _) = host_of(url);
        url.replace(server, &format!("127.0.0.1:{}", self.port))
    }

    /// Cuts the connection of the next commit.
    pub(super) fn cut_next(&self, cut: Cut) {
        self.shared.next.store(cut as u8, Ordering::SeqCst);
    }

    /// After the next cut nobody comes through, until [`Self::open`].
    pub(super) fn close_behind(&self) {
        self.shared.closes.store(true, Ordering::SeqCst);
    }

    /// Everybody comes through again.
    pub(super) fn open(&self) {
        self.shared.closes.store(false, Ordering::SeqCst);
    }

    /// How many were cut.
    pub(super) fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

/// Host and port, and what comes behind.
fn host_of(url: &str) -> (&str, &str) {
    let (_, rest) = url.split_once('@').unwrap();
    rest.split_once('/').unwrap()
}

/// Passes everything on until one side ends the connection, or it is cut.
async fn lead(mut client: TcpStream, mut server: TcpStream, shared: Arc<Shared>) {
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut end = Vec::new();
    loop {
        tokio::select! {
            size = client.read(&mut asked) => {
                let Ok(size @ 1..) = size else { return };
                let part = &asked[..size];
                end.extend_from_slice(part);
                let cut = if is_commit(&end) { shared.take() } else { Cut::Not };
                if cut == Cut::Before || server.write_all(part).await.is_err() {
                    return;
                }
                if cut == Cut::After {
                    // When there is an answer it has happened.
                    server.readable().await.ok();
                    return;
                }
                let keep = end.len().saturating_sub(4096);
                end.drain(..keep);
            }
            size = server.read(&mut answered) => {
                let Ok(size @ 1..) = size else { return };
                if client.write_all(&answered[..size]).await.is_err() {
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

/// Whether a batch is committed with what was sent last.
fn is_commit(sent: &[u8]) -> bool {
    let marks = b"process (id, batch";
    sent.ends_with(b";\nCOMMIT") && sent.windows(marks.len()).any(|part| part == marks)
}

//! A way between two parties that can go wrong: cut, slow, without traffic, closed, or cut in the
//! middle of a database's commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
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
    /// Nothing comes through from then on, until traffic flows again: it gets there late.
    Hold = 3,
}

/// How a commit is known by what goes over the wire.
#[derive(Clone, Copy)]
pub struct Signs {
    /// Whether a batch is being committed, by the end of what was sent.
    pub commits: fn(&[u8]) -> bool,
    /// Whether the commit has happened, by what came back since.
    pub has_happened: fn(&[u8]) -> bool,
}

/// How much comes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Traffic {
    /// Everything.
    #[default]
    Flows,
    /// Everything, so much later.
    Slow(Duration),
    /// Nothing, until it flows again; connections stay.
    Stands,
    /// Connections stay, and new ones are ended at once.
    Closed,
}

/// Listens on a port and leads to a server.
pub struct Link {
    port: u16,
    shared: Arc<Shared>,
    /// Ends with it.
    _task: JoinSet<()>,
}

struct Shared {
    server: String,
    signs: Option<Signs>,
    next: AtomicU8,
    cuts: AtomicUsize,
    /// Nobody comes through any more from the next cut on.
    closes: AtomicBool,
    traffic: watch::Sender<Traffic>,
    /// Grows whenever all connections are to end.
    ends: watch::Sender<u64>,
}

impl Link {
    /// A way to the server of `url`, or at `HOST:PORT`.
    pub async fn to(url: &str) -> Self {
        Self::start(url, None).await
    }

    /// The same to a database server, whose commits are known by `signs`.
    pub async fn watching(url: &str, signs: Signs) -> Self {
        Self::start(url, Some(signs)).await
    }

    async fn start(url: &str, signs: Option<Signs>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server: host_of(url).to_owned(),
            signs,
            next: AtomicU8::default(),
            cuts: AtomicUsize::default(),
            closes: AtomicBool::default(),
            traffic: watch::Sender::default(),
            ends: watch::Sender::default(),
        });
        let mut task = JoinSet::new();
        task.spawn(accept(listener, shared.clone()));
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

    /// From now on this much comes through.
    pub fn set(&self, traffic: Traffic) {
        self.shared.traffic.send_replace(traffic);
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.shared.ends.send_modify(|ends| *ends += 1);
    }

    /// Cuts the connection of the next commit.
    pub fn cut_next(&self, cut: Cut) {
        self.shared.next.store(cut as u8, Ordering::SeqCst);
    }

    /// After the next cut of a commit nobody comes through, until [`Self::open`].
    pub fn close_behind(&self) {
        self.shared.closes.store(true, Ordering::SeqCst);
    }

    /// Everybody comes through again.
    pub fn open(&self) {
        self.shared.closes.store(false, Ordering::SeqCst);
        self.set(Traffic::Flows);
    }

    /// How many commits were cut or held up.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

/// Host and port.
fn host_of(url: &str) -> &str {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let (_, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    rest.split(['/', '?']).next().unwrap()
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        if *shared.traffic.borrow() == Traffic::Closed {
            continue;
        }
        let shared = shared.clone();
        connections.spawn(async move {
            let mut ends = shared.ends.subscribe();
            let led = async {
                shared.delay().await;
                // Where no server is, nobody gets a connection.
                if let Ok(server) = TcpStream::connect(&shared.server).await {
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    shared.lead(client, server).await;
                }
            };
            tokio::select! {
                () = led => {}
                _ = ends.changed() => {}
            }
        });
    }
}

impl Shared {
    /// Passes everything on until one side ends the connection, or its commit is cut.
    async fn lead(&self, mut client: TcpStream, mut server: TcpStream) {
        let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let (mut sent, mut swallowed) = (Vec::new(), Vec::new());
        let mut cut = Cut::Not;
        loop {
            tokio::select! {
                size = client.read(&mut asked) => {
                    let Ok(size @ 1..) = size else { return };
                    let part = &asked[..size];
                    if let Some(signs) = self.signs {
                        sent.extend_from_slice(part);
                        if cut == Cut::Not && (signs.commits)(&sent) {
                            sent.clear();
                            cut = self.take();
                        }
                        let keep = sent.len().saturating_sub(SENT_BYTES);
                        sent.drain(..keep);
                    }
                    self.delay().await;
                    if cut == Cut::Before || server.write_all(part).await.is_err() {
                        return;
                    }
                }
                size = server.read(&mut answered) => {
                    let Ok(size @ 1..) = size else { return };
                    if let (Cut::After, Some(signs)) = (cut, self.signs) {
                        swallowed.extend_from_slice(&answered[..size]);
                        if (signs.has_happened)(&swallowed) {
                            return;
                        }
                        continue;
                    }
                    self.delay().await;
                    if client.write_all(&answered[..size]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// As long as a part of what is sent is held up.
    async fn delay(&self) {
        let mut traffic = self.traffic.subscribe();
        let now = traffic.wait_for(|traffic| *traffic != Traffic::Stands);
        let now = *now.await.expect("the sender is ours");
        if let Traffic::Slow(time) = now {
            tokio::time::sleep(time).await;
        }
    }

    /// What happens to this commit.
    fn take(&self) -> Cut {
        let cut = match self.next.swap(0, Ordering::SeqCst) {
            1 => Cut::Before,
            2 => Cut::After,
            3 => Cut::Hold,
            _ => return Cut::Not,
        };
        if cut == Cut::Hold {
            self.traffic.send_replace(Traffic::Stands);
        }
        self.cuts.fetch_add(1, Ordering::SeqCst);
        if self.closes.load(Ordering::SeqCst) {
            self.traffic.send_replace(Traffic::Closed);
        }
        cut
    }
}

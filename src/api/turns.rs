//! A connection that lets others go first before it writes.
//!
//! Requests are tasks of their own. When a batch of writes is committed, many of one connection
//! become ready at the same time; the first to answer wakes the task of the connection, which the
//! scheduler runs at once, so that every answer would be a system call of its own, and a segment, and
//! a read at the other end. Given up for one turn, the connection comes behind all that is ready by
//! then, and takes their answers along. Where nothing else is ready, its turn comes again at once: no
//! answer waits for a timer. grpc-go's `loopyWriter` does the same.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that gives its turn up once between two flushes.
pub(super) struct Turns<S> {
    stream: S,
    given_up: bool,
}

impl<S: Unpin> Turns<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            given_up: false,
        }
    }

    /// The connection, once it is its turn to write.
    fn writer(&mut self, cx: &Context<'_>) -> Poll<Pin<&mut S>> {
        if !std::mem::replace(&mut self.given_up, true) {
            // A task that wakes itself goes to the end of the queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Pin::new(&mut self.stream))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Turns<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Turns<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.writer(cx)).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.writer(cx)).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.given_up = false;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    use super::*;

    /// Counts the writes that reach it.
    struct Counted<S>(S, Arc<AtomicUsize>);

    impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// One worker, so that who comes when is certain.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_many_tasks_say_at_the_same_time_is_written_together() {
        const TASKS: u8 = 20;
        let writes = Arc::new(AtomicUsize::new(0));
        let (near, mut far) = tokio::io::duplex(1024);
        let mut near = Turns::new(Counted(near, writes.clone()));
        let (say, mut said) = mpsc::unbounded_channel();
        // As a connection does it: takes what there is, and tries to write it each time.
        let connection = async move {
            let mut waiting = Vec::new();
            let mut open = true;
            while open || !waiting.is_empty() {
                poll_fn(|cx| {
                    while open {
                        match said.poll_recv(cx) {
                            Poll::Ready(Some(byte)) => waiting.push(byte),
                            Poll::Ready(None) => open = false,
                            Poll::Pending => break,
                        }
                    }
                    if waiting.is_empty() {
                        return if open { Poll::Pending } else { Poll::Ready(()) };
                    }
                    let written = ready!(Pin::new(&mut near).poll_write(cx, &waiting));
                    waiting.drain(..written.unwrap());
                    Poll::Ready(())
                })
                .await;
                near.flush().await.unwrap();
            }
        };
        // From a task of the worker, which runs what it wakes before what waits.
        let all = crate::tasks::spawn_owned(async move {
            for byte in 0..TASKS {
                let say = say.clone();
                crate::tasks::spawn_owned(async move { say.send(byte).unwrap() });
            }
            drop(say);
            connection.await;
        });
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        all.await.unwrap();
        read.sort_unstable();
        assert_eq!(read, (0..TASKS).collect::<Vec<_>>());
        assert_eq!(writes.load(Ordering::Relaxed), 1);
    }
}

//! A connection that has to say in time which protocol it speaks.
//!
//! The server waits for the preface of HTTP/2, or for what is none and so is HTTP/1. Both have clocks of
//! their own, but only from there on: whoever connects and then says nothing, as scanners and balancers
//! do, would keep a file descriptor for good.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What a client of HTTP/2 says first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose reads fail if the protocol is not known in time.
pub(super) struct Greeting<S> {
    stream: S,
    /// Nothing once the protocol is known.
    awaited: Option<Awaited>,
}

struct Awaited {
    /// What is still to come of the preface. Anything else decides as well.
    rest: &'static [u8],
    deadline: Pin<Box<Sleep>>,
}

impl<S> Greeting<S> {
    pub(super) fn new(stream: S, within: Duration) -> Self {
        let awaited = Awaited {
            rest: PREFACE,
            deadline: Box::pin(sleep(within)),
        };
        Self {
            stream,
            awaited: Some(awaited),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let known = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Some(awaited) = &mut self.awaited else {
            return read;
        };
        if read.is_pending() {
            ready!(awaited.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match awaited.rest.strip_prefix(&buf.filled()[known..]) {
            Some(rest) if !rest.is_empty() => awaited.rest = rest,
            _ => self.awaited = None,
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! A connection's bytes, with an end to waiting for a peer that dawdles: over the head of a request once it has begun,
//! and over taking what is sent to it. Waiting for a request to begin is not limited here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// For the peer to take anything of what is sent.
const WRITE: Duration = Duration::from_secs(10);

/// Where a connection stands.
#[derive(Clone, Debug, Default)]
pub struct Stage(Arc<AtomicU8>);

const IDLE: u8 = 0;
const IN_HEAD: u8 = 1;
const BUSY: u8 = 2;

impl Stage {
    /// A request's head was read, and the request is being answered.
    pub fn busy(&self) {
        self.0.store(BUSY, Ordering::Relaxed);
    }

    /// It is answered; the next one may come.
    pub fn idle(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    fn is(&self, stage: u8) -> bool {
        self.0.load(Ordering::Relaxed) == stage
    }
}

/// A stream that fails where its peer dawdles.
#[derive(Debug)]
pub struct Patient<S> {
    stream: S,
    stage: Stage,
    head_time: Duration,
    head: Option<Pin<Box<Sleep>>>,
    write: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// The stage is moved on by whoever answers the requests; `head_time` is for a request's head, from its first byte.
    pub fn new(stream: S, stage: Stage, head_time: Duration) -> Self {
        Self {
            stream,
            stage,
            head_time,
            head: None,
            write: None,
        }
    }

    /// What is pending must come to something before the time is up.
    fn bounded<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write = None;
            return result;
        }
        let write = self
            .write
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE)));
        match write.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.stage.is(IDLE) && buffer.filled().len() > before {
            self.stage.0.store(IN_HEAD, Ordering::Relaxed);
            self.head = Some(Box::pin(tokio::time::sleep(self.head_time)));
        }
        if !self.stage.is(IN_HEAD) {
            self.head = None;
        } else if let Some(head) = &mut self.head
            && head.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bounded(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.bounded(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    const HEAD: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_begun_must_end() {
        let (mut peer, ours) = duplex(1024);
        let mut ours = Patient::new(ours, Stage::default(), HEAD);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            loop {
                // A byte now and then does not help.
                if peer.write_all(b"G").await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(900)).await;
            }
        });
        let mut byte = [0];
        ours.read_exact(&mut byte).await.unwrap();
        let begun = Instant::now();
        let error = loop {
            if let Err(error) = ours.read_exact(&mut byte).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_and_the_next_request_have_time() {
        let (mut peer, ours) = duplex(1024);
        let stage = Stage::default();
        let mut ours = Patient::new(ours, stage.clone(), HEAD);
        let mut byte = [0];
        for _ in 0..3 {
            peer.write_all(b"ab").await.unwrap();
            ours.read_exact(&mut byte).await.unwrap();
            stage.busy();
            tokio::time::sleep(HEAD * 3).await;
            ours.read_exact(&mut byte).await.unwrap();
            stage.idle();
            tokio::time::sleep(HEAD * 3).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (_peer, ours) = duplex(16);
        let mut ours = Patient::new(ours, Stage::default(), HEAD);
        let start = Instant::now();
        let error = ours.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed()), (io::ErrorKind::TimedOut, WRITE));
    }
}

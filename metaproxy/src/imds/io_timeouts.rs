//! Wraps the stream of a connection with three time limits: for a request to begin, for its head to arrive, and for
//! the peer to accept a part of the response.
//!
//! Setting a timer costs more than reading a request. So a timer is not set again for each request: it keeps running
//! from an earlier request, and when it fires, the current deadline is checked.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a write may wait until the peer accepts any bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The stage of a connection: idle, reading a head, or busy with a request.
#[derive(Clone, Debug, Default)]
pub struct Stage(Arc<AtomicU8>);

const IDLE: u8 = 0;
const IN_HEAD: u8 = 1;
const BUSY: u8 = 2;

impl Stage {
    /// Notes that a request's head was read, and that the request is being answered.
    pub fn busy(&self) {
        self.0.store(BUSY, Ordering::Relaxed);
    }

    /// Notes that the request is answered, so that the next one may come.
    pub fn idle(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    fn now(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a connection waits for, and since when.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// Nothing from the peer: a request is being answered.
    No,
    /// A request, since this moment.
    ForRequest(Instant),
    /// The rest of a head, since this moment.
    ForHead(Instant),
}

/// A stream that fails when its peer exceeds a time limit.
#[derive(Debug)]
pub struct TimedStream<S> {
    stream: S,
    stage: Stage,
    idle_timeout: Duration,
    head_timeout: Duration,
    waiting: Waiting,
    clock: Option<Pin<Box<Sleep>>>,
    write: Option<Pin<Box<Sleep>>>,
}

impl<S> TimedStream<S> {
    /// Wraps a stream. The code that answers the requests updates `stage`. A request must begin within
    /// `idle_timeout`, and its head must arrive within `head_timeout` of its first byte.
    pub fn new(stream: S, stage: Stage, idle_timeout: Duration, head_timeout: Duration) -> Self {
        Self {
            stream,
            stage,
            idle_timeout,
            head_timeout,
            waiting: Waiting::No,
            clock: None,
            write: None,
        }
    }

    /// Returns the deadline of what the connection waits for; `None` if it waits for nothing.
    fn end(&self) -> Option<Instant> {
        match self.waiting {
            Waiting::No => None,
            Waiting::ForRequest(since) => Some(since + self.idle_timeout),
            Waiting::ForHead(since) => Some(since + self.head_timeout),
        }
    }

    /// Returns `Ready` when that deadline has passed.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(end) = self.end() else {
            return Poll::Pending;
        };
        let clock = self
            .clock
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if clock.deadline() > end {
            clock.as_mut().reset(end);
        }
        while clock.as_mut().poll(context).is_ready() {
            if clock.deadline() >= end {
                return Poll::Ready(());
            }
            clock.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// Returns the result, or a timeout error if it has been pending for [`WRITE_TIMEOUT`].
    fn bounded<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write = None;
            return result;
        }
        let write = self
            .write
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        match write.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        let came = buffer.filled().len() > before;
        match (self.stage.now(), self.waiting) {
            (BUSY, _) => self.waiting = Waiting::No,
            (IDLE, _) if came => {
                self.stage.0.store(IN_HEAD, Ordering::Relaxed);
                // Usually this is the whole head. The time is checked only if more of it must be read.
                self.waiting = Waiting::No;
                return result;
            }
            (IN_HEAD, Waiting::No | Waiting::ForRequest(_)) => {
                self.waiting = Waiting::ForHead(Instant::now())
            }
            (IDLE, Waiting::No | Waiting::ForHead(_)) => self.waiting = Waiting::ForRequest(Instant::now()),
            _ => {}
        }
        // Later bytes of a head do not extend its deadline.
        let is_over = if result.is_pending() {
            self.poll_end(context).is_ready()
        } else {
            self.end().is_some_and(|end| Instant::now() >= end)
        };
        if is_over {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
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

    const HEAD: Duration = Duration::from_secs(5);
    const IDLE: Duration = Duration::from_secs(60 * 60 * 2);

    #[tokio::test(start_paused = true)]
    async fn a_head_must_end_in_time_after_its_first_byte() {
        let (mut peer, ours) = duplex(1024);
        let mut ours = TimedStream::new(ours, Stage::default(), IDLE, HEAD);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            loop {
                // A byte from time to time does not extend the deadline.
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
    async fn the_head_timeout_does_not_apply_to_a_body_and_the_next_request() {
        let (mut peer, ours) = duplex(1024);
        let stage = Stage::default();
        let mut ours = TimedStream::new(ours, stage.clone(), IDLE, HEAD);
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
    async fn a_request_must_begin_within_the_idle_timeout_after_the_last_answer() {
        let idle = Duration::from_secs(60);
        let (mut peer, ours) = duplex(1024);
        let stage = Stage::default();
        let mut ours = TimedStream::new(ours, stage.clone(), idle, HEAD);
        let mut byte = [0];
        for _ in 0..3 {
            let (wrote, read) = tokio::join!(
                async {
                    tokio::time::sleep(idle - Duration::from_secs(1)).await;
                    peer.write_all(b"a").await
                },
                ours.read_exact(&mut byte),
            );
            assert!(wrote.is_ok() && read.is_ok());
            stage.busy();
            tokio::time::sleep(idle * 2).await;
            stage.idle();
        }
        let silent = Instant::now();
        let error = ours.read_exact(&mut byte).await.unwrap_err();
        assert_eq!((error.kind(), silent.elapsed()), (io::ErrorKind::TimedOut, idle));
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_timeout_applies_although_a_longer_timer_is_running() {
        let (mut peer, ours) = duplex(1024);
        let mut ours = TimedStream::new(ours, Stage::default(), IDLE, HEAD);
        let mut bytes = [0; 2];
        let reading = async {
            let begun = ours.read(&mut bytes).await.map(|_| Instant::now());
            (begun, ours.read(&mut bytes).await, Instant::now())
        };
        let (wrote, (begun, rest, end)) = tokio::join!(
            async {
                tokio::time::sleep(HEAD).await;
                peer.write_all(b"G").await
            },
            reading,
        );
        assert!(wrote.is_ok());
        assert_eq!(rest.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(end - begun.unwrap(), HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_fails_if_the_peer_accepts_nothing() {
        let (_peer, ours) = duplex(16);
        let mut ours = TimedStream::new(ours, Stage::default(), IDLE, HEAD);
        let start = Instant::now();
        let error = ours.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(
            (error.kind(), start.elapsed()),
            (io::ErrorKind::TimedOut, WRITE_TIMEOUT)
        );
    }
}

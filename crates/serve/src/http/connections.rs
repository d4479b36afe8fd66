//! Connections: how many there may be, how long one may be silent, and how they end.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};

use super::App;

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// How many; more are closed at once.
    pub most: usize,
    /// How long the head of a request may take to arrive, and how long a connection may wait for its next request.
    pub head_timeout: Duration,
    /// How long a client may take nothing of what it is sent.
    pub write_timeout: Duration,
    /// How long what runs may go on when the server ends.
    pub drain: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { most: 16_384, head_timeout: seconds(20), write_timeout: seconds(30), drain: seconds(30) }
    }
}

/// Bytes of a request's head at the most.
const HEAD_BYTES: usize = 64 * 1024;

/// Serves until `end` comes; then refuses new requests, lets those that run go on for as long as `limits` says, and ends.
///
/// # Errors
/// If the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    app: App,
    limits: Connections,
    end: impl Future<Output = ()>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(limits.most));
    let (ending, is_ending) = watch::channel(false);
    let mut end = std::pin::pin!(end);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // Out of file descriptors, or a client that has gone already: the others are not to suffer.
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (app, mut is_ending) = (app.router.clone(), is_ending.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            let io = TokioIo::new(Timed::new(stream, limits.write_timeout));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.head_timeout)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(io, TowerToHyperService::new(app));
            let mut connection = std::pin::pin!(connection);
            // A connection that breaks is its client's affair.
            let _ = tokio::select! {
                ended = connection.as_mut() => ended,
                _ = is_ending.changed() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
        });
    }
    drop(listener);
    app.drain();
    let _ = ending.send(true);
    let all = u32::try_from(limits.most).unwrap_or(u32::MAX);
    let drained = timeout(limits.drain, places.acquire_many(all)).await.is_ok();
    tracing::info!(drained, "the server ends");
    app.abort();
    Ok(())
}

/// A connection that ends when its client takes nothing for too long.
struct Timed {
    stream: TcpStream,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, waiting: None }
    }

    /// Passes on what a write says, and ends waiting that takes too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

//! Connections: HTTP/1.1 within bounds of size, number and time.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener as Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::rt::{ReadBufCursor, Sleep, Timer};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::app::App;
use super::problem::Problem;
use gradus::error::{Error, Result};

/// Connections at a time; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 512;

/// Bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;

/// How long a client may read nothing of an answer.
const STALL: Duration = Duration::from_secs(60);

/// How long answers that say that the server stops may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves `app` at `bound` until `stop` is told or dropped.
///
/// # Errors
/// `Io` if the system refuses what a server needs.
pub(super) fn serve(bound: Bound, app: Arc<App>, stop: oneshot::Receiver<()>) -> Result<()> {
    let refused = || Error::io("the server's socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(refused())?;
    bound.set_nonblocking(true).map_err(refused())?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(bound).map_err(refused())?;
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accepting = tokio::spawn(accept(listener, app.clone(), connections));
        let _ = stop.await;
        accepting.abort();
        let begun = Instant::now();
        while app.open_requests() > 0 && begun.elapsed() < FAREWELL {
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    })?;
    // A body that is being read on a thread of its own is not waited for.
    runtime.shutdown_background();
    Ok(())
}

async fn accept(listener: TcpListener, app: Arc<App>, connections: Arc<Semaphore>) {
    while let Ok(place) = connections.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = app.clone();
                tokio::spawn(async move {
                    converse(stream, app).await;
                    drop(place);
                });
            }
            // Such as too many open files: those that are open will close.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// One connection. That it broke is the client's business.
async fn converse(stream: TcpStream, app: Arc<App>) {
    let _ = stream.set_nodelay(true);
    let answer = service_fn(|request| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(app.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(Clock)
        .header_read_timeout(app.read_time)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(Io { stream, stall: None }, answer);
    let _ = connection.await;
}

/// The bytes of a body of at most `most` bytes.
///
/// # Errors
/// 413 for a longer one, 408 for one that does not come, 400 for one that breaks off.
pub(super) async fn body(
    mut body: Incoming,
    most: usize,
    time: Duration,
) -> std::result::Result<Vec<u8>, Problem> {
    let deadline = Instant::now() + time;
    let mut bytes = Vec::new();
    loop {
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        match timeout_at(deadline, frame).await {
            Ok(None) => return Ok(bytes),
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > most {
                    drain(body, most).await;
                    let message = format!("the body is longer than {most} bytes");
                    return Err(Problem::new(413, message));
                }
                bytes.extend_from_slice(&data);
            }
            Ok(Some(Err(error))) => {
                return Err(Problem::new(400, format!("the body breaks off: {error}")));
            }
            Err(_) => {
                let message = format!("the body has not come within {} s", time.as_secs());
                return Err(Problem::new(408, message));
            }
        }
    }
}

/// Reads some of what is too long, so that its sender comes to read why it is refused.
async fn drain(mut body: Incoming, most: usize) {
    let mut left = 3 * most;
    let reading = async {
        loop {
            match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() > left => return,
                    Ok(data) => left -= data.len(),
                    Err(_) => {}
                },
                None | Some(Err(_)) => return,
            }
        }
    };
    let _ = timeout(Duration::from_secs(5), reading).await;
}

/// A socket as hyper has it. A peer that takes nothing for a while is given up.
struct Io {
    stream: TcpStream,
    stall: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Io {
    fn watched<T>(
        &mut self,
        context: &mut Context<'_>,
        wrote: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.stall = None;
            return wrote;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(STALL)));
        match stall.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 8 << 10];
        let most = into.remaining().min(bytes.len());
        let mut read = ReadBuf::new(&mut bytes[..most]);
        let done = Pin::new(&mut self.stream).poll_read(context, &mut read);
        if let Poll::Ready(Ok(())) = done {
            into.put_slice(read.filled());
        }
        done
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, wrote)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The time of the runtime.
struct Clock;

struct Alarm(Pin<Box<tokio::time::Sleep>>);

impl Timer for Clock {
    fn sleep(&self, time: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Alarm(Box::pin(sleep(time))))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Alarm(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl Sleep for Alarm {}

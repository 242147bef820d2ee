//! Events of the engine to the bytes that a client reads: an answer as a whole, or one event per token.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::answer::{Choice, Form, Token};
use super::app::Open;
use super::engine::{Event, Finish};
use super::problem::Problem;
use crate::text::Codec;
use crate::train::task::Task;

/// The body of an answer.
pub(super) enum Reply {
    Whole(Option<Bytes>),
    Stream(Box<Stream>),
}

impl Reply {
    pub fn text(text: String) -> Reply {
        Reply::Whole(Some(Bytes::from(text)))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Reply::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Reply::Stream(stream) => {
                stream.poll(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Reply::Whole(bytes) => {
                hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Reply::Stream(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// What of an answer is there.
struct Gathered {
    choices: Vec<Choice>,
    /// Choices that go on.
    left: usize,
    drawn: usize,
}

/// News of a choice.
enum News {
    Token { choice: usize, token: Token, text: String },
    End { choice: usize, finish: Finish },
}

impl Gathered {
    fn new(choices: usize) -> Gathered {
        Gathered { choices: vec![Choice::default(); choices], left: choices, drawn: 0 }
    }

    /// What an event says; choices do not keep tokens and texts by themselves.
    fn read(&mut self, event: Event) -> Result<News, Problem> {
        match event {
            Event::Token { choice, id, logp, top, text } => {
                self.drawn += 1;
                let kept = &mut self.choices[choice];
                let token = Token { id, logp, top, offset: kept.length };
                kept.length += text.chars().count();
                Ok(News::Token { choice, token, text })
            }
            Event::End { choice, finish } => {
                self.left -= 1;
                self.choices[choice].finish = Some(finish);
                Ok(News::End { choice, finish })
            }
            Event::Failed { status, reason } => Err(Problem::new(status, reason)),
        }
    }
}

/// The whole answer.
///
/// # Errors
/// What the engine says; 504 if it is not there by `deadline`.
pub(super) async fn whole(
    form: &Form,
    codec: &dyn Codec,
    mut events: UnboundedReceiver<Event>,
    deadline: Instant,
) -> Result<Value, Problem> {
    let mut gathered = Gathered::new(form.choices());
    while gathered.left > 0 {
        let event = timeout_at(deadline, events.recv()).await.map_err(|_| late())?;
        if let News::Token { choice, token, text } = gathered.read(event.ok_or_else(ended)?)? {
            let choice = &mut gathered.choices[choice];
            choice.tokens.push(token);
            choice.text += &text;
        }
    }
    form.whole(codec, &gathered.choices).map_err(|error| Problem::new(500, error.to_string()))
}

fn late() -> Problem {
    Problem::new(504, "the answer took longer than the server's time limit for one (--timeout)")
}

fn ended() -> Problem {
    Problem::new(503, "the server is stopping")
}

/// An answer as events. Dropped, it closes the channel, and the engine frees what it held.
pub(super) struct Stream {
    form: Form,
    task: Arc<dyn Task>,
    events: UnboundedReceiver<Event>,
    deadline: Pin<Box<Sleep>>,
    gathered: Gathered,
    ready: VecDeque<Bytes>,
    done: bool,
    /// The server waits for it when it stops.
    _open: Open,
}

impl Stream {
    pub fn new(
        form: Form,
        task: Arc<dyn Task>,
        events: UnboundedReceiver<Event>,
        deadline: Instant,
        open: Open,
    ) -> Stream {
        let ready = form.begin().iter().map(event).collect();
        let (deadline, gathered) = (Box::pin(sleep_until(deadline)), Gathered::new(form.choices()));
        Stream { form, task, events, deadline, gathered, ready, done: false, _open: open }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(bytes));
            }
            if self.done {
                return Poll::Ready(None);
            }
            let told = match self.events.poll_recv(context) {
                Poll::Ready(Some(event)) => self.tell(event),
                Poll::Ready(None) => Err(ended()),
                Poll::Pending => match self.deadline.as_mut().poll(context) {
                    Poll::Ready(()) => Err(late()),
                    Poll::Pending => return Poll::Pending,
                },
            };
            if let Err(problem) = told {
                self.ready.push_back(event(&problem.json()));
                self.done = true;
                self.events.close();
            }
        }
    }

    fn tell(&mut self, told: Event) -> Result<(), Problem> {
        match self.gathered.read(told)? {
            News::Token { choice, token, mut text } => {
                // What may be a call is told at its end.
                if self.form.calls {
                    self.gathered.choices[choice].text += &std::mem::take(&mut text);
                }
                let chunk = self.form.token(self.task.codec(), choice, &token, &text);
                let chunk = chunk.map_err(|error| Problem::new(500, error.to_string()))?;
                self.ready.extend(chunk.iter().map(event));
            }
            News::End { choice, finish } => {
                let held = std::mem::take(&mut self.gathered.choices[choice].text);
                self.ready.push_back(event(&self.form.end(choice, &held, finish)));
                if self.gathered.left == 0 {
                    let total = self.form.total(self.gathered.drawn);
                    self.ready.extend(total.iter().map(event));
                    self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                    self.done = true;
                }
            }
        }
        Ok(())
    }
}

/// A server-sent event. JSON in one line has no line ends.
fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

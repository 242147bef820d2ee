//! One worker: a child process, and a thread for each of its three streams, so that none of them can
//! block the asking side for longer than its time limit.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use super::CommandOptions;
use super::line::{Reply, parse_reply};
use crate::io::interrupt::wait_for;
use crate::reward::process::Group;
use crate::reward::tail::{LAST_WORDS, Tail};
use crate::reward::{STOPPED, printable};

/// A running command. Dropping it kills it.
pub struct Worker {
    child: Group,
    requests: SyncSender<String>,
    replies: Receiver<Line>,
    /// A line that came before anything was asked.
    early: Option<Line>,
    tail: Tail,
    max_line: usize,
}

/// What came from standard output. Its end closes the channel.
enum Line {
    Whole(Vec<u8>),
    TooLong,
}

/// How a worker came to be of no more use.
pub enum End {
    /// It ended, or closed its output.
    Ended,
    /// It did not keep to the protocol.
    Broken(String),
    /// It said nothing within its time; how long that was.
    Silent(String),
}

/// Why a sample was not judged.
pub struct Fault {
    pub reason: String,
    /// The command said nothing within its time.
    pub silent: bool,
}

impl Fault {
    fn start(program: &str, error: std::io::Error) -> Fault {
        Fault { reason: format!("cannot start `{program}`: {error}"), silent: false }
    }
}

impl Worker {
    /// Starts `argv`.
    pub fn start(argv: &[String], options: &CommandOptions) -> Result<Worker, Fault> {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |error| Fault::start(&argv[0], error);
        let mut child = Group::spawn(&mut command).map_err(failed)?;
        let (requests, replies, tail) = Worker::attach(&mut child, options).map_err(failed)?;
        let max_line = options.max_line;
        Ok(Worker { child, requests, replies, early: None, tail, max_line })
    }

    /// The threads. They end when the child's side of their stream is closed.
    fn attach(child: &mut Group, options: &CommandOptions) -> std::io::Result<Streams> {
        let missing = || std::io::Error::other("a stream is missing");
        let (stdin, stdout, stderr) = child.streams().ok_or_else(missing)?;
        // Small queues: a worker that floods its output is held up by its pipe.
        let (requests, inbox) = sync_channel(1);
        let (outbox, replies) = sync_channel(1);
        let max_line = options.max_line;
        thread::Builder::new().spawn(move || write_requests(stdin, inbox))?;
        thread::Builder::new().spawn(move || read_replies(stdout, outbox, max_line))?;
        Ok((requests, replies, Tail::of(stderr)?))
    }

    /// Whether it ended since it last answered, which is no sample's fault.
    pub fn is_gone(&mut self) -> bool {
        match self.replies.try_recv() {
            Ok(line) => self.early = Some(line),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return true,
        }
        false
    }

    /// Asks about one sample, and waits for the reply for a time, which may be longer at the start, or
    /// until a signal asks for a stop. After an error the worker is of no more use.
    pub fn ask(
        &mut self,
        id: u64,
        line: &str,
        [timeout, startup]: [Duration; 2],
    ) -> Result<Reply, End> {
        // The queue is empty, as no request is open; if it is closed, so will the replies be.
        self.offer(line);
        match self.receive(timeout + startup)? {
            Some(reply) => parse_reply(&reply, id)
                .map_err(|what| End::Broken(format!("the command wrote {what}"))),
            None if startup.is_zero() => Err(End::Silent(seconds(timeout))),
            None => {
                let (timeout, startup) = (seconds(timeout), seconds(startup));
                Err(End::Silent(format!("{timeout} of timeout and {startup} of startup")))
            }
        }
    }

    /// Queues a line for it, if the one before has been taken. One that has gone takes none: what is received
    /// then says so.
    pub fn offer(&mut self, line: &str) -> bool {
        self.requests.try_send(line.to_string()).is_ok()
    }

    /// The next line that it writes within `time`, if it writes one before a signal asks for a stop. After an
    /// error the worker is of no more use.
    pub fn receive(&mut self, time: Duration) -> Result<Option<Vec<u8>>, End> {
        let received = match self.early.take() {
            Some(line) => Some(Ok(line)),
            None => wait_for(time, |turn| match self.replies.recv_timeout(turn) {
                Err(RecvTimeoutError::Timeout) => None,
                received => Some(received),
            }),
        };
        match received {
            Some(Ok(Line::Whole(line))) => Ok(Some(line)),
            Some(Ok(Line::TooLong)) => Err(End::Broken(format!(
                "the command wrote a line of more than {} bytes",
                self.max_line
            ))),
            Some(Err(_)) => Err(End::Ended),
            None => Ok(None),
        }
    }

    /// Ends the worker. What went wrong, for a message, with its last words.
    pub fn end(mut self, end: End) -> Fault {
        let silent = matches!(end, End::Silent(_));
        if matches!(end, End::Ended) {
            // It may have closed its output just before it ends by itself.
            self.child.exits_within(LAST_WORDS);
        }
        let status = self.child.kill();
        let reason = match (end, status) {
            _ if crate::io::interrupt::check().is_err() => STOPPED.into(),
            (End::Broken(reason), _) => reason,
            (End::Silent(time), _) => format!("no answer within {time}: the command was killed"),
            (End::Ended, Some(status)) => {
                format!("the command ended with {status} before it answered")
            }
            (End::Ended, None) => "the command ended before it answered".into(),
        };
        let tail = printable(&self.tail.text());
        let reason = match tail.is_empty() {
            true => reason,
            false => format!("{reason}; its standard error ends: {tail}"),
        };
        Fault { reason, silent }
    }
}

type Streams = (SyncSender<String>, Receiver<Line>, Tail);

fn seconds(time: Duration) -> String {
    format!("{} s", (time.as_secs_f64() * 1e3).round() / 1e3)
}

fn write_requests(mut stdin: ChildStdin, inbox: Receiver<String>) {
    mask_sigpipe();
    for line in inbox {
        if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

/// Writing to a worker that has gone is an error, not the end of the process, also where gradus is
/// a guest in a program that did not ask to ignore the signal.
fn mask_sigpipe() {
    #[cfg(unix)]
    // SAFETY: the set lives here and is initialized before it is used; the mask is this thread's.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigaddset(&mut signals, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
    }
}

fn read_replies(stdout: ChildStdout, outbox: SyncSender<Line>, max_line: usize) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(max_line as u64 + 1).read_until(b'\n', &mut line);
        let line = match read {
            Ok(0) | Err(_) => return,
            Ok(n) if n > max_line && !line.ends_with(b"\n") => Line::TooLong,
            Ok(_) => Line::Whole(line),
        };
        let last = matches!(line, Line::TooLong);
        if outbox.send(line).is_err() || last {
            return;
        }
    }
}

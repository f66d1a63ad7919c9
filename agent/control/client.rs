//! The other end, for commands. Blocking, with deadlines, and without a runtime: the callback must start in a
//! millisecond.

use super::{Answer, Request};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there, or nobody answers.
    #[error("the daemon is not reachable on {socket}: {why}")]
    Unreachable {
        /// The control socket.
        socket: String,
        /// Why.
        why: String,
    },
    /// It answered, and said no.
    #[error("{0}")]
    Refused(String),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    socket: String,
}

impl Client {
    /// Connects at once or not at all, and asks.
    ///
    /// # Errors
    /// When nobody is there, or too busy to even queue us.
    pub fn ask(path: &Path, request: &Request, patience: Duration) -> Result<Client, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable { socket: path.display().to_string(), why };
        let stream = open(path).map_err(|e| unreachable(reason(e)))?;
        let mut line = serde_json::to_vec(request).map_err(|e| unreachable(e.to_string()))?;
        line.push(b'\n');
        let sent = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(patience)))
            .and_then(|()| stream.set_write_timeout(Some(patience)))
            .and_then(|()| (&stream).write_all(&line));
        // A daemon that turns us away may have closed already; its reason can still be read.
        match sent {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(unreachable(e.to_string())),
            _ => Ok(Client { stream: BufReader::new(stream), socket: path.display().to_string() }),
        }
    }

    /// How long the next answer may take.
    pub fn patience(&self, patience: Option<Duration>) {
        // Fails only for a duration of zero, which nobody passes.
        let _ = self.stream.get_ref().set_read_timeout(patience);
    }

    /// The next line; none when there is nothing new within the patience. [`Answer::Done`] is the last.
    ///
    /// # Errors
    /// When the daemon is gone or says no.
    pub fn poll(&mut self) -> Result<Option<Answer>, ClientError> {
        // Whole lines only: what is there of a line stays for the next call.
        match self.filled() {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
            Err(e) => return Err(self.unreachable(e.to_string())),
            Ok([]) => return Err(self.unreachable("it hung up".to_owned())),
            Ok(_) => {}
        }
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).map_err(|e| self.unreachable(e.to_string()))?;
        match serde_json::from_slice(&line) {
            Ok(Answer::Refused(why)) => Err(ClientError::Refused(why)),
            Ok(answer) => Ok(Some(answer)),
            Err(e) => Err(self.unreachable(format!("its answer is strange ({e})"))),
        }
    }

    /// The next line.
    ///
    /// # Errors
    /// When none comes in time, the daemon is gone, or says no.
    pub fn answer(&mut self) -> Result<Answer, ClientError> {
        self.poll()?.ok_or_else(|| self.unreachable("it does not answer".to_owned()))
    }

    /// A process that was stopped and goes on finds its read interrupted: that says nothing about the daemon.
    fn filled(&mut self) -> std::io::Result<&[u8]> {
        while let Err(e) = self.stream.fill_buf() {
            if e.kind() != ErrorKind::Interrupted {
                return Err(e);
            }
        }
        self.stream.fill_buf()
    }

    fn unreachable(&self, why: String) -> ClientError {
        ClientError::Unreachable { socket: self.socket.clone(), why }
    }
}

/// A blocking `connect` has no time-out: behind a full backlog it would wait for ever.
pub(super) fn open(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

fn reason(e: Errno) -> String {
    match e {
        Errno::ENOENT | Errno::ECONNREFUSED => "it does not run; see `systemctl status pgsquire`".to_owned(),
        Errno::EACCES => "permission denied; run this as root or postgres".to_owned(),
        Errno::EAGAIN => "it does not answer; see `journalctl -u pgsquire`".to_owned(),
        e => e.desc().to_owned(),
    }
}

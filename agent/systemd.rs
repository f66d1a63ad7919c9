//! What systemd is told and gives. All of it does nothing when we were not started by systemd.

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use sd_notify::NotifyState;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Environment that belongs to this process alone: remove it from every child's, else a child speaks for us.
pub const OURS: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("cannot notify systemd: {e}");
    }
}

/// The configuration is valid and the listeners are bound.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// A new configuration is being read; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(e) => tracing::warn!("cannot read the monotonic clock: {e}"),
    }
}

/// The process is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Feeds the watchdog. Only the driver does this, after a completed turn.
pub fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`watchdog`] must be called: half of what the unit says. None: there is no watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// The TCP listener of the socket unit, if there is one. Ask once, before anything else opens files.
pub fn inherited_listener() -> Option<TcpListener> {
    let fds = sd_notify::listen_fds().ok()?;
    let mut found = None;
    for fd in fds {
        // systemd passes these descriptors to this process (LISTEN_PID) and nothing else here owns them.
        #[expect(unsafe_code, reason = "the only way to take over a descriptor; each number is taken once")]
        // SAFETY: the descriptor was passed to us open, and this loop is the only one who takes it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let stream = getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream);
        let address = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok();
        let family = address.and_then(|address| address.family());
        let internet = matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6));
        if stream && internet && found.is_none() {
            found = Some(TcpListener::from(fd));
        } else {
            tracing::warn!("a socket passed by systemd is of no use here and was closed");
        }
    }
    found
}

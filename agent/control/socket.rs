//! The socket's file: left over from a crash it is replaced, in use it is respected.

use super::client;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// A bound control socket. Its file goes away with it.
#[derive(Debug)]
pub struct Bound {
    pub(super) listener: UnixListener,
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("another agent runs on the control socket {}: stop it, or set [control] socket", .0.display())]
    Taken(PathBuf),
    /// The system refused.
    #[error("cannot {doing} for the control socket ([control] socket)")]
    System {
        /// What was tried.
        doing: String,
        /// Why not.
        source: io::Error,
    },
}

/// Binds the control socket. Must be called within a runtime.
///
/// Everybody may connect; who is served is decided by the peer's user. (With a mode alone the user of Patroni could not
/// reach a daemon that runs as another one.)
///
/// # Errors
/// When another agent has it, or the system refuses.
pub fn bind(path: &Path) -> Result<Bound, BindError> {
    let at = |doing: &str, path: &Path| {
        let doing = format!("{doing} {}", path.display());
        move |source| BindError::System { doing, source }
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(at("create", folder))?;
    }
    // The lock settles the race of two agents that start at once; the kernel lets go of it for a crashed one.
    let lock_path = path.with_extension("lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
    let file = file.map_err(at("open", &lock_path))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => BindError::Taken(path.to_owned()),
        e => at("lock", &lock_path)(e.into()),
    })?;
    match client::open(path) {
        Err(Errno::ENOENT) => {}
        // Left over from a crash. Whatever else stands there is not ours to remove, and `bind` says so.
        Err(Errno::ECONNREFUSED) if is_socket(path) => {
            std::fs::remove_file(path).map_err(at("remove", path))?
        }
        Ok(_) | Err(Errno::EAGAIN) => return Err(BindError::Taken(path.to_owned())),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(at("bind", path))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(at("open up", path))?;
    Ok(Bound { listener, path: path.to_owned(), _lock: lock })
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

impl Drop for Bound {
    fn drop(&mut self) {
        // We hold the lock, so it is ours. If it stays, the next start replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

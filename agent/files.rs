//! Files that other programs read too: read whole, replaced whole or not at all.
//!
//! A replaced file is written beside the old one, made durable, given the old one's mode and owner, and renamed over it:
//! a reader sees the old content or the new, and a full disk, a crash or a power cut leaves the old file as it was.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Pid, Uid, User, fchown, getgrouplist};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Larger files are refused, in bytes.
pub const SIZE_LIMIT: u64 = 16 * 1024 * 1024;

/// A disk that does not answer for this long counts as failed.
pub const DISK_DEADLINE: Duration = Duration::from_secs(10);

const ALL_MODE_BITS: u32 = 0o777;

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}{}", path.display(), advice(doing, source))]
    Io {
        /// A verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
    /// It is larger than [`SIZE_LIMIT`].
    #[error("{} is larger than {} MB: is this the right file?", .0.display(), SIZE_LIMIT >> 20)]
    TooLarge(PathBuf),
    /// It is a folder, a device or a pipe.
    #[error("{} is no regular file", .0.display())]
    NotRegular(PathBuf),
    /// Its readers would lose it.
    #[error("{} is left as it was: {who} could not read it any more, because this process may not give the new file {what}", path.display())]
    WouldHide {
        /// The file.
        path: PathBuf,
        /// Who reads it now.
        who: String,
        /// The owner or group that could not be set.
        what: String,
    },
}

impl FileError {
    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn advice(doing: &str, source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            " (under systemd, `ReadWritePaths=` of the unit must name the folder)"
        }
        io::ErrorKind::PermissionDenied if doing == "create a temporary file in" => {
            " (to replace a file atomically this user must be allowed to write in its folder)"
        }
        _ => "",
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { doing, path: path.into(), source }
}

/// Reads a whole regular file.
///
/// # Errors
/// When it cannot be read, is no regular file (a pipe is not waited for), or is larger than [`SIZE_LIMIT`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut open = OpenOptions::new();
    let file =
        open.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(failed("read", path))?;
    let meta = file.metadata().map_err(failed("read", path))?;
    if !meta.is_file() {
        return Err(FileError::NotRegular(path.into()));
    }
    let mut content = Vec::new();
    file.take(SIZE_LIMIT + 1).read_to_end(&mut content).map_err(failed("read", path))?;
    if content.len() as u64 > SIZE_LIMIT {
        return Err(FileError::TooLarge(path.into()));
    }
    Ok(content)
}

/// Reads a secret: the whole file without its last newline.
///
/// # Errors
/// As [`read`].
pub fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut secret = read(path)?;
    if secret.last() == Some(&b'\n') {
        secret.pop();
        if secret.last() == Some(&b'\r') {
            secret.pop();
        }
    }
    Ok(secret)
}

/// Who may do what with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Access {
    /// Only this process' user.
    pub const PRIVATE: Access = Access { mode: 0o600, owner: None };

    /// Mode, owner and group of an existing file.
    ///
    /// # Errors
    /// When there is no such file, or it is no regular one.
    pub fn of(path: &Path) -> Result<Access, FileError> {
        let meta = fs::metadata(path).map_err(failed("look at", path))?;
        if !meta.is_file() {
            return Err(FileError::NotRegular(path.into()));
        }
        Ok(Access { mode: meta.mode() & ALL_MODE_BITS, owner: Some((meta.uid(), meta.gid())) })
    }

    /// Gives a new file this access. An owner that this process may not give is left out as long as nobody who could
    /// read the old file loses it.
    fn give(&self, file: &File, path: &Path) -> Result<(), FileError> {
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            if fchown(file, Some(uid), Some(gid)).is_err() {
                // The group alone may be given by its members.
                let _ = fchown(file, None, Some(gid));
            }
            let meta = file.metadata().map_err(failed("look at", path))?;
            self.check_readers(&meta, path)?;
        }
        file.set_permissions(Permissions::from_mode(self.mode)).map_err(failed("set the mode of", path))
    }

    fn check_readers(&self, new: &Metadata, path: &Path) -> Result<(), FileError> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        if self.mode & 0o004 != 0 {
            return Ok(());
        }
        let hides = |who: String, what: String| FileError::WouldHide { path: path.into(), who, what };
        if self.mode & 0o040 != 0 && new.gid() != gid {
            return Err(hides(format!("group {gid}"), format!("that group (it has {})", new.gid())));
        }
        let by_group = || self.mode & 0o040 != 0 && is_member(Uid::from_raw(uid), Gid::from_raw(new.gid()));
        if self.mode & 0o400 != 0 && new.uid() != uid && uid != 0 && !by_group() {
            return Err(hides(
                format!("its owner, user {uid},"),
                format!("that owner (it has {})", new.uid()),
            ));
        }
        Ok(())
    }
}

fn is_member(user: Uid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(user) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

/// Replaces the content of an existing file; its mode, owner and group stay. Behind a symbolic link the file is
/// replaced and the link stays.
///
/// # Errors
/// When anything fails: then the old file is untouched and nothing is left behind.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), FileError> {
    replace_if(path, content, || true).map(|_| ())
}

/// The same, if it is `still` wanted when the new content is on disk and nothing but a rename is left to do: to make it
/// durable takes time, in which somebody else may save the file. Says whether it was replaced.
///
/// # Errors
/// As [`replace`].
pub fn replace_if(path: &Path, content: &[u8], still: impl FnOnce() -> bool) -> Result<bool, FileError> {
    let target = fs::canonicalize(path).map_err(failed("find", path))?;
    put_if(&target, content, &Access::of(&target)?, Lasts::Durable, still)
}

/// Puts a file with this content and access in place, whether there was one or not.
///
/// # Errors
/// When anything fails: then an old file is untouched and nothing is left behind.
pub fn put(path: &Path, content: &[u8], access: &Access) -> Result<(), FileError> {
    put_if(path, content, access, Lasts::Durable, || true).map(|_| ())
}

/// The same for what means nothing after the next boot: it outlives every process, but not a power cut, after which the
/// file may be the old one, the new one, or empty. Takes microseconds where [`put`] takes milliseconds.
///
/// # Errors
/// As [`put`].
pub fn put_until_boot(path: &Path, content: &[u8], access: &Access) -> Result<(), FileError> {
    put_if(path, content, access, Lasts::UntilBoot, || true).map(|_| ())
}

/// For how long a file is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    /// Through power cuts.
    Durable,
    /// Until the machine starts again.
    UntilBoot,
}

fn put_if(
    path: &Path,
    content: &[u8],
    access: &Access,
    lasts: Lasts,
    still: impl FnOnce() -> bool,
) -> Result<bool, FileError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else { return Err(FileError::NotRegular(path.into())) };
    remove_leftovers(folder, name);
    let mut temp = Temporary::create(folder, name)?;
    temp.file.write_all(content).map_err(failed("write a temporary file for", path))?;
    access.give(&temp.file, path)?;
    if lasts == Lasts::Durable {
        temp.file.sync_all().map_err(failed("write a temporary file for", path))?;
    }
    if !still() {
        return Ok(false);
    }
    fs::rename(&temp.path, path).map_err(failed("replace", path))?;
    temp.renamed = true;
    if lasts == Lasts::Durable {
        sync_folder(folder)?;
    }
    Ok(true)
}

/// Removes a file if it is there, durably.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match remove_until_boot(path)? {
        true => sync_folder(path.parent().unwrap_or(Path::new("."))),
        false => Ok(()),
    }
}

/// The same for what means nothing after the next boot: a power cut may bring it back. Says whether it was there.
///
/// # Errors
/// As [`remove`].
pub fn remove_until_boot(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("remove", path)(e)),
    }
}

/// Makes a folder, and those above it, that only this process' user may enter.
///
/// # Errors
/// When it is not there and cannot be made.
pub fn private_folder(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder", path))
}

fn sync_folder(folder: &Path) -> Result<(), FileError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    match synced {
        // Some network file systems know no fsync of folders.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other.map_err(failed("make durable the folder", folder)),
    }
}

/// The new content until it is renamed. Ends with it, whatever happens.
struct Temporary {
    path: PathBuf,
    file: File,
    renamed: bool,
}

const MARK: &str = ".pgsquire-";

impl Temporary {
    fn create(folder: &Path, name: &OsStr) -> Result<Self, FileError> {
        let path = folder.join(temporary_name(name, &std::process::id().to_string()));
        let mut open = OpenOptions::new();
        let file = open
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create a temporary file in", folder))?;
        Ok(Temporary { path, file, renamed: false })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn temporary_name(name: &OsStr, process: &str) -> OsString {
    let mut temp = OsString::from(".");
    temp.push(name);
    temp.push(MARK);
    temp.push(process);
    temp
}

/// A crash in the middle of a write leaves a temporary file, which may hold passwords. The process that made it is in
/// its name: it goes as soon as that process is gone, or when it is this one (one process never writes a file twice
/// at a time).
fn remove_leftovers(folder: &Path, name: &OsStr) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let start = temporary_name(name, "");
    for entry in entries.flatten() {
        let found = entry.file_name();
        let Some(found) = found.to_str() else { continue };
        let Some(process) = start.to_str().and_then(|start| found.strip_prefix(start)) else { continue };
        let Ok(process) = process.parse::<i32>() else { continue };
        let own = u32::try_from(process).is_ok_and(|p| p == std::process::id());
        if own || nix::sys::signal::kill(Pid::from_raw(process), None) == Err(Errno::ESRCH) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Runs file work of one worker beside the async tasks, one piece at a time, each with a deadline.
///
/// Work on a disk that hangs cannot be called off: it goes on, and the next piece waits for its end.
#[derive(Debug)]
pub struct Disk {
    deadline: Duration,
    running: Option<JoinHandle<()>>,
}

impl Default for Disk {
    fn default() -> Self {
        Disk { deadline: DISK_DEADLINE, running: None }
    }
}

impl Disk {
    /// Runs `work`.
    ///
    /// # Errors
    /// Those of `work`, as a sentence, or that the disk gave no answer within [`DISK_DEADLINE`].
    pub async fn run<T, E, F>(&mut self, work: F) -> Result<T, String>
    where
        T: Send + 'static,
        E: ToString + Send + 'static,
        F: FnOnce() -> Result<T, E> + Send + 'static,
    {
        let deadline = self.deadline;
        let hangs = || format!("the disk gave no answer within {} s", deadline.as_secs());
        if let Some(earlier) = &mut self.running {
            let _ = timeout(deadline, earlier).await.map_err(|_| hangs())?;
        }
        let (tell, told) = oneshot::channel();
        self.running = Some(tokio::task::spawn_blocking(move || {
            let _ = tell.send(work());
        }));
        let answer = timeout(deadline, told).await.map_err(|_| hangs())?;
        self.running = None;
        match answer {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("file work ended without an answer".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};
    use std::process::Command;
    use tempfile::{TempDir, tempdir};

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn am_root() -> bool {
        Uid::effective().is_root()
    }

    #[test]
    fn mode_and_owner_stay() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("a.ini");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        if am_root() {
            chown(&path, Some(4711), Some(4712)).unwrap();
        }
        let before = fs::metadata(&path).unwrap();
        replace(&path, b"new").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert_ne!(after.ino(), before.ino(), "the file is another one");
        assert_eq!(names(dir.path()), ["a.ini"]);
    }

    #[test]
    fn what_is_saved_while_the_new_content_becomes_durable_stays() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("a.ini");
        fs::write(&path, "old").unwrap();
        let somebody_saves = || {
            fs::write(&path, "theirs").unwrap();
            read(&path).is_ok_and(|found| found == b"old")
        };
        assert!(!replace_if(&path, b"ours", somebody_saves).unwrap());
        assert_eq!(read(&path).unwrap(), b"theirs");
        assert_eq!(names(dir.path()), ["a.ini"]);
        assert!(replace_if(&path, b"ours", || true).unwrap());
        assert_eq!(read(&path).unwrap(), b"ours");
    }

    #[test]
    fn behind_a_link_the_target_is_replaced() {
        let dir = tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        fs::write(dir.path().join("real/a.ini"), "old").unwrap();
        let link = dir.path().join("a.ini");
        symlink("real/a.ini", &link).unwrap();
        replace(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(dir.path().join("real/a.ini")).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.ini", "real"]);
        fs::remove_file(dir.path().join("real/a.ini")).unwrap();
        assert!(replace(&link, b"x").unwrap_err().is_not_found(), "a dangling link is no place to write to");
    }

    #[test]
    fn a_reader_never_sees_half_a_file() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("a.ini");
        let versions = [vec![b'a'; 100_000], vec![b'b'; 150_000]];
        fs::write(&path, &versions[0]).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 0..100 {
                    replace(&path, &versions[n % 2]).unwrap();
                }
            });
            while !writer.is_finished() {
                assert!(versions.contains(&read(&path).unwrap()));
            }
        });
    }

    #[test]
    fn what_is_no_file_of_ours_is_refused() {
        let dir = tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&pipe), Err(FileError::NotRegular(_))), "and nobody waits for a writer");
        assert!(matches!(replace(dir.path(), b""), Err(FileError::NotRegular(_))));
        let large = dir.path().join("large");
        File::create(&large).unwrap().set_len(SIZE_LIMIT + 1).unwrap();
        assert_eq!(
            read(&large).unwrap_err().to_string().split(" is ").last().unwrap(),
            "this the right file?"
        );
        let nowhere = read(&dir.path().join("no/such")).unwrap_err();
        assert!(nowhere.is_not_found() && nowhere.to_string().contains("no/such"), "{nowhere}");
    }

    #[test]
    fn secrets_lose_their_last_newline_only() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("secret");
        for (content, secret) in [("a\n", "a"), ("a\n\n", "a\n"), ("a\r\n", "a"), (" a ", " a "), ("", "")] {
            fs::write(&path, content).unwrap();
            assert_eq!(read_secret(&path).unwrap(), secret.as_bytes());
        }
    }

    #[test]
    fn leftovers_of_the_dead_are_removed_and_of_the_living_kept() {
        let dir = tempdir().unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        for process in [child.id(), 1] {
            fs::write(dir.path().join(format!(".a.ini.pgsquire-{process}")), "x").unwrap();
        }
        put(&dir.path().join("a.ini"), b"new", &Access::PRIVATE).unwrap();
        assert_eq!(names(dir.path()), [".a.ini.pgsquire-1", "a.ini"]);
        assert_eq!(fs::metadata(dir.path().join("a.ini")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn nobody_loses_a_file_they_could_read() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("new");
        fs::write(&path, "").unwrap();
        let new = fs::metadata(&path).unwrap();
        let (me, my_group, other) = (new.uid(), new.gid(), 4711);
        let hides =
            |mode, uid, gid| Access { mode, owner: Some((uid, gid)) }.check_readers(&new, &path).err();
        assert!(hides(0o640, me, my_group).is_none());
        assert!(hides(0o644, other, other).is_none(), "everybody may read it");
        assert!(hides(0o600, 0, my_group).is_none(), "root reads everything");
        assert!(hides(0o600, me, other).is_none(), "the group could not read it before");
        let owner = hides(0o640, other, my_group).unwrap().to_string();
        assert!(owner.contains("its owner, user 4711, could not read it any more"), "{owner}");
        let group = hides(0o640, me, other).unwrap().to_string();
        assert!(group.contains("group 4711 could not read it any more"), "{group}");
    }

    /// A file system of 64 kB in a folder of its own.
    struct SmallDisk(TempDir);

    impl SmallDisk {
        fn mount() -> Option<Self> {
            if !am_root() {
                eprintln!("SKIPPED: only root can mount the small file system of this test");
                return None;
            }
            let dir = tempdir().unwrap();
            let mount = ["-t", "tmpfs", "-o", "size=64k", "pgsquire-test"];
            assert!(Command::new("mount").args(mount).arg(dir.path()).status().unwrap().success());
            Some(SmallDisk(dir))
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_nothing_else() {
        let Some(disk) = SmallDisk::mount() else { return };
        let path = disk.0.path().join("a.ini");
        let old = vec![b'o'; 20_000];
        fs::write(&path, &old).unwrap();
        let error = replace(&path, &vec![b'n'; 60_000]).unwrap_err().to_string();
        assert!(error.contains("a.ini") && error.contains("No space left"), "{error}");
        assert_eq!(read(&path).unwrap(), old);
        assert_eq!(names(disk.0.path()), ["a.ini"]);
        replace(&path, &vec![b'n'; 30_000]).unwrap();
    }

    #[test]
    fn a_read_only_folder_is_said() {
        let Some(disk) = SmallDisk::mount() else { return };
        let path = disk.0.path().join("a.ini");
        fs::write(&path, "old").unwrap();
        let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(disk.0.path()).status();
        assert!(remount.unwrap().success());
        let error = replace(&path, b"new").unwrap_err().to_string();
        assert!(
            error.contains("cannot create a temporary file in") && error.contains("ReadWritePaths"),
            "{error}"
        );
        assert_eq!(read(&path).unwrap(), b"old");
    }

    #[tokio::test]
    async fn a_disk_that_hangs_is_not_waited_for_and_work_stays_in_order() {
        let mut disk = Disk { deadline: Duration::from_millis(100), running: None };
        let (release, held) = std::sync::mpsc::channel::<()>();
        let hung: Result<(), String> = disk.run(move || held.recv().map_err(|e| e.to_string())).await;
        assert_eq!(hung, Err("the disk gave no answer within 0 s".into()));
        let queued: Result<u8, String> = disk.run(|| Ok::<u8, String>(1)).await;
        assert_eq!(queued, Err("the disk gave no answer within 0 s".into()), "the first piece still runs");
        release.send(()).unwrap();
        assert_eq!(disk.run(|| Ok::<u8, String>(2)).await, Ok(2));
        assert_eq!(disk.run(|| Err::<u8, _>("no")).await, Err("no".into()));
    }
}

//! A private authority, and what it signed for 127.0.0.1.

use crate::processes::succeed;
use std::path::{Path, PathBuf};
use std::process::Command;

/// PEM files; the server's are `server.crt` and `server.key` in the same folder.
pub struct Certificates {
    /// The authority.
    pub ca: PathBuf,
    /// For a client.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in this folder.
    pub fn make(dir: &Path) -> Self {
        let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt
            for who in server client; do
              openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
              printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > ext
              openssl x509 -req -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $who.crt
            done";
        succeed(Command::new("sh").args(["-ec", script]).current_dir(dir));
        Certificates { ca: dir.join("ca.crt"), cert: dir.join("client.crt"), key: dir.join("client.key") }
    }
}

//! A private authority, and what it signed for 127.0.0.1.

use crate::processes::succeed;
use std::path::{Path, PathBuf};
use std::process::Command;

/// PEM files; the server's are `server.crt` and `server.key` in the same folder.
#[derive(Clone)]
pub struct Certificates {
    /// The authority.
    pub ca: PathBuf,
    /// For a client.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

const AUTHORITY: &str =
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt
     rm -f index.txt serial
     touch index.txt
     echo 1000 >serial
     cat >ca.cnf <<'END'
[ca]
default_ca = here
[here]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
x509_extensions = both
unique_subject = no
[any]
commonName = supplied
[both]
subjectAltName = IP:127.0.0.1
extendedKeyUsage = serverAuth,clientAuth
END
     for who in server client; do
       openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
     done";

impl Certificates {
    /// Makes them in this folder, in the place of those that are there.
    pub fn make(dir: &Path) -> Self {
        run(dir, AUTHORITY);
        let made = Certificates {
            ca: dir.join("ca.crt"),
            cert: dir.join("client.crt"),
            key: dir.join("client.key"),
        };
        made.sign("server", "-days 2");
        made.sign("client", "-days 2");
        made
    }

    /// Gives the server or the client a certificate that has expired.
    pub fn expire(&self, who: &str) {
        self.sign(who, "-startdate 20200101000000Z -enddate 20200201000000Z");
    }

    fn sign(&self, who: &str, when: &str) {
        let files = "-config ca.cnf -cert ca.crt -keyfile ca.key";
        let script = format!("openssl ca -batch -notext {files} {when} -in {who}.csr -out {who}.crt");
        run(self.ca.parent().unwrap(), &script);
    }
}

fn run(dir: &Path, script: &str) {
    succeed(Command::new("sh").args(["-ec", script]).current_dir(dir));
}

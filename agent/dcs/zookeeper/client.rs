//! A connection to one ZooKeeper server, and the session on it.

use super::{DEADLINE, ZooKeeperConfig};
use crate::dcs::failover::{Failure, Open};
use crate::dcs::handshake::{self, TlsFiles};
use crate::files;
use rustls::pki_types::ServerName;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use zookeeper_client::{Client, Error, SessionInfo, SessionState, TlsOptions};

/// A server that says nothing for so long has lost its connection; the client library asks it three times in that.
const SILENCE: Duration = Duration::from_secs(2);
/// A session that holds nothing but watches. Servers raise it to two of their ticks.
const SESSION: Duration = Duration::from_secs(6);
/// What a failed connection is looked into for.
const DIAGNOSIS: Duration = Duration::from_millis(200);

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        // What a server says about a node or a login is an answer; all else is the end of a session.
        let answer = matches!(
            error,
            Error::NoNode
                | Error::NoAuth
                | Error::BadVersion
                | Error::NodeExists
                | Error::NotEmpty
                | Error::NoChildrenForEphemerals
                | Error::InvalidAcl
                | Error::AuthFailed
                | Error::BadArguments(_)
                | Error::QuotaExceeded
                | Error::Unimplemented
        );
        // Nothing is done for a session that is gone. What a server says of it on connecting is certain; a client says it also
        // after its session went on elsewhere.
        let gone = matches!(error, Error::SessionExpired);
        Failure {
            why: error.to_string(),
            forbidden: matches!(error, Error::NoAuth),
            unsure: !answer && !gone,
            broken: !answer,
            gone,
        }
    }
}

/// The server's word about a node.
pub(super) fn at(path: &str, error: &Error) -> Failure {
    let failure = Failure::from(error);
    Failure { why: format!("{path}: {}", failure.why), ..failure }
}

/// Which session a connection is for.
pub(super) enum Purpose {
    /// Reads and watches: a session that ends with its client.
    Follow,
    /// A new session that outlives its connection.
    Lease(Duration),
    /// That session again, on another connection.
    Resume(SessionInfo, Duration),
    /// The same, to end it: it ends with its client.
    End(SessionInfo, Duration),
}

/// Reads and watches. A client is a session, so a session that must outlive its connection is not made here: who binds
/// keys to one connects with a purpose, through [`Clients::each`](crate::dcs::failover::Clients::each).
impl Open for ZooKeeperConfig {
    type Client = Client;

    const KEEP_ONE: bool = true;

    fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    fn secret(&self) -> Option<&Path> {
        self.password_file.as_deref()
    }

    fn tls_files(&self) -> TlsFiles<'_> {
        let ZooKeeperConfig { tls_ca, tls_cert, tls_key, .. } = self;
        TlsFiles { ca: tls_ca.as_deref(), cert: tls_cert.as_deref(), key: tls_key.as_deref() }
    }

    async fn open(&self, endpoint: &str) -> Result<Client, Failure> {
        let connected = timeout(DEADLINE, self.connect(endpoint, Purpose::Follow)).await;
        connected.unwrap_or_else(|_| Err(Failure { unsure: false, ..Failure::silent(DEADLINE) }))
    }

    /// One that is cut off is not waited for.
    fn is_current(client: &Client) -> bool {
        client.state() == SessionState::SyncConnected
    }
}

impl ZooKeeperConfig {
    /// A connection of its own.
    pub(super) async fn connect(&self, name: &str, purpose: Purpose) -> Result<Client, Failure> {
        let port = name.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if name.contains("//") || name.contains(char::is_whitespace) || !matches!(port, Some(Ok(_))) {
            return Err(Failure::sure("this is no address: write host:port"));
        }
        let mut connector = Client::connector();
        let session = match &purpose {
            Purpose::Follow => SESSION,
            Purpose::Lease(timeout) | Purpose::Resume(_, timeout) | Purpose::End(_, timeout) => *timeout,
        };
        connector = connector
            .with_session_timeout(session)
            .with_connection_timeout(SILENCE.min(session / 2))
            .with_fail_eagerly();
        connector = match purpose {
            Purpose::Follow => connector,
            Purpose::Lease(_) => connector.with_detached(),
            Purpose::Resume(session, _) => connector.with_session(session).with_detached(),
            Purpose::End(session, _) => connector.with_session(session),
        };
        if let Some(user) = &self.username {
            let password = match &self.password_file {
                Some(path) => files::read_secret(path).map_err(|e| Failure::sure(e.to_string()))?,
                None => Vec::new(),
            };
            connector = connector.with_auth("digest", &[user.as_bytes(), b":", &password].concat());
        }
        let address = format!("{}{}", name, self.chroot);
        let connected = if self.is_tls() {
            // The library panics on a name that cannot stand in a certificate.
            let host = name.rsplit_once(':').map_or("", |(host, _)| host);
            if ServerName::try_from(host.trim_matches(['[', ']'])).is_err() {
                return Err(Failure::sure("its name cannot stand in a certificate"));
            }
            connector.with_tls(self.tls().map_err(Failure::sure)?).secure_connect(&address).await
        } else {
            connector.connect(&address).await
        };
        match connected {
            Ok(client) => Ok(client),
            Err(error @ (Error::SessionExpired | Error::AuthFailed | Error::BadArguments(_))) => {
                Err(Failure { unsure: false, ..Failure::from(&error) })
            }
            Err(error) => Err(Failure::sure(self.diagnosis(name, &error).await)),
        }
    }

    /// The library says "no available hosts" whatever the reason was.
    async fn diagnosis(&self, name: &str, error: &Error) -> String {
        match timeout(DIAGNOSIS, TcpStream::connect(name)).await {
            Ok(Err(reason)) => reason.to_string(),
            Ok(Ok(_)) if self.is_tls() => {
                let objection = self.objection(name).await;
                let unknown = || format!("{error}: is this the secure port of ZooKeeper?");
                format!("no session over TLS: {}", objection.unwrap_or_else(unknown))
            }
            Ok(Ok(_)) => format!("{error}: it takes connections, but gives no ZooKeeper session"),
            Err(_) => format!("{error}: it does not even take a connection"),
        }
    }

    async fn objection(&self, name: &str) -> Option<String> {
        let (host, port) = name.rsplit_once(':')?;
        handshake::objection(host, port.parse().ok()?, self.tls_files()).await
    }

    fn tls(&self) -> Result<TlsOptions, String> {
        let text = |path: &Path| {
            let pem = files::read(path).map_err(|e| e.to_string())?;
            String::from_utf8(pem).map_err(|_| format!("{} is not PEM", path.display()))
        };
        let Some(ca) = &self.tls_ca else {
            return Err("no certificate is trusted without tls_ca".to_owned());
        };
        let bad = |path: &Path, e: Error| format!("{}: {e}", path.display());
        let mut tls = TlsOptions::new().with_pem_ca(&text(ca)?).map_err(|e| bad(ca, e))?;
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            tls = tls.with_pem_identity(&text(cert)?, &text(key)?).map_err(|e| bad(cert, e))?;
        }
        Ok(tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_means() {
        let means = |error: Error| {
            let failure = at("/a", &error);
            assert!(failure.why.starts_with("/a: "), "{}", failure.why);
            (failure.unsure, failure.broken, failure.gone)
        };
        assert_eq!(means(Error::NoAuth), (false, false, false), "an answer");
        assert_eq!(means(Error::ConnectionLoss), (true, true, false));
        assert_eq!(means(Error::SessionMoved), (true, true, false), "it lives on");
        assert_eq!(means(Error::SessionExpired), (false, true, true));
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_certified_is_said() {
        let config = ZooKeeperConfig { tls_ca: Some("/ca.pem".into()), ..ZooKeeperConfig::default() };
        let failure = config.connect("a..b:2181", Purpose::Follow).await.unwrap_err();
        assert!(failure.why.contains("certificate"), "{}", failure.why);
    }
}

//! The client of one etcd endpoint.

use super::{DEADLINE, EtcdConfig};
use crate::dcs::failover::{Failure, Open};
use crate::dcs::handshake::{self, TlsFiles};
use crate::{files, https};
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Idle connections are asked this often whether they live,
const PING_EVERY: Duration = Duration::from_secs(3);
/// and must answer within this.
const PING_DEADLINE: Duration = Duration::from_secs(2);

impl Open for EtcdConfig {
    type Client = Client;

    fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    fn secret(&self) -> Option<&Path> {
        self.password_file.as_deref()
    }

    fn tls_files(&self) -> TlsFiles<'_> {
        let EtcdConfig { tls_ca, tls_cert, tls_key, .. } = self;
        TlsFiles { ca: tls_ca.as_deref(), cert: tls_cert.as_deref(), key: tls_key.as_deref() }
    }

    async fn look_again(&self, endpoint: &str) -> Option<String> {
        let url =
            https::address(endpoint, self.tls_ca.is_some()).ok().filter(|url| url.scheme() == "https")?;
        handshake::objection(url.host_str()?, url.port_or_known_default()?, self.tls_files()).await
    }

    async fn open(&self, endpoint: &str) -> Result<Client, Failure> {
        self.connect(endpoint).await.map_err(Failure::sure)
    }
}

impl EtcdConfig {
    async fn connect(&self, name: &str) -> Result<Client, String> {
        // The library goes elsewhere with a port that is none.
        https::address(name, self.tls_ca.is_some())?;
        let mut options = ConnectOptions::new()
            .with_keep_alive(PING_EVERY, PING_DEADLINE)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(DEADLINE)
            .with_timeout(DEADLINE)
            .with_require_leader(true);
        if let Some(user) = &self.username {
            let password = match &self.password_file {
                Some(path) => files::read_secret(path).map_err(|e| e.to_string())?,
                None => Vec::new(),
            };
            let password = String::from_utf8(password).map_err(|_| "the password is not UTF-8".to_owned())?;
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        if name.starts_with("https://") || (!name.starts_with("http://") && self.tls_ca.is_some()) {
            options = options.with_tls(self.tls()?);
        }
        Client::connect([name], Some(options)).await.map_err(|e| words(&e))
    }

    fn tls(&self) -> Result<TlsOptions, String> {
        let pem = |path: &PathBuf| files::read(path).map_err(|e| e.to_string());
        let mut tls = TlsOptions::new();
        if let Some(ca) = &self.tls_ca {
            tls = tls.ca_certificate(Certificate::from_pem(pem(ca)?));
        }
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            tls = tls.identity(Identity::from_pem(pem(cert)?, pem(key)?));
        }
        Ok(tls)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut why = words(&error);
        if why.contains("frame with invalid size") {
            why += ": this is not etcd, it may be a web page, or a port that wants https";
        }
        // Whoever refuses the connection, or says this, has done nothing.
        let harmless = ["Connection refused", "permission denied", "no leader", "invalid auth token"];
        let unsure = !harmless.iter().any(|said| why.contains(said));
        let forbidden = why.contains("permission denied");
        Failure { unsure, broken: !why.starts_with("etcdserver: "), forbidden, why, ..Failure::default() }
    }
}

/// The client's words, with the causes that a transport error hides.
pub(super) fn words(error: &Error) -> String {
    let (mut text, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), std::error::Error::source(status)),
        Error::TransportError(e) => (e.to_string(), std::error::Error::source(e)),
        other => (other.to_string(), None),
    };
    while let Some(inner) = cause {
        let more = inner.to_string();
        if more != "transport error" && !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
        cause = inner.source();
    }
    if text.is_empty() { "no reason given".into() } else { text }
}

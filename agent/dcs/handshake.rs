//! A TLS handshake for nothing but its outcome. A server that does not like our certificate says so only after the
//! handshake, and closes the connection: a client library may see the second before it has read the first, and
//! ZooKeeper's never says either.

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// It is work on both sides, and nothing but a sentence hangs on it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The files of a configuration.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TlsFiles<'a> {
    /// Whom to trust.
    pub(super) ca: Option<&'a Path>,
    /// Our certificate.
    pub(super) cert: Option<&'a Path>,
    /// Its key.
    pub(super) key: Option<&'a Path>,
}

/// Why there is no TLS with this host; none: there is, as far as one sees.
pub(super) async fn objection(host: &str, port: u16, files: TlsFiles<'_>) -> Option<String> {
    let host = host.trim_matches(['[', ']']);
    timeout(PATIENCE, try_it(host, port, files)).await.ok()?.err()
}

async fn try_it(host: &str, port: u16, files: TlsFiles<'_>) -> Result<(), String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let connector = TlsConnector::from(Arc::new(client(files)?));
    let stream = TcpStream::connect((host, port)).await.map_err(|e| e.to_string())?;
    let mut stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    // One that has no objection waits for us to speak, or says something that is not about TLS.
    stream.read(&mut [0]).await.map(drop).map_err(|e| e.to_string())
}

fn client(files: TlsFiles<'_>) -> Result<ClientConfig, String> {
    let certificates = |path: &Path| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        all.map_err(|e| format!("{}: {e}", path.display()))
    };
    let mut trusted = RootCertStore::empty();
    if let Some(ca) = files.ca {
        trusted.add_parsable_certificates(certificates(ca)?);
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let versions = versions.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let builder = versions.with_root_certificates(trusted);
    match (files.cert, files.key) {
        (Some(cert), Some(key)) => {
            let pair = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{}: {e}", key.display()))?;
            let with = builder.with_client_auth_cert(certificates(cert)?, pair);
            with.map_err(|e| format!("{}: {e}", cert.display()))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

//! HTTP clients towards neighbours: they trust only the certificates that they are given, and work on a host without any.

use crate::files;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Url};
use std::path::Path;

/// A client to be finished with deadlines. Without an authority no certificate is trusted: `https` then fails and says so.
///
/// # Errors
/// A sentence, when a certificate or key cannot be used.
pub fn builder(ca: Option<&Path>, cert: Option<&Path>, key: Option<&Path>) -> Result<ClientBuilder, String> {
    let pem = |path: &Path| files::read(path).map_err(|e| e.to_string());
    let unusable =
        |path: &Path, e: reqwest::Error| format!("{} cannot be used: {}", path.display(), words(&e));
    let trusted = match ca {
        Some(path) => Certificate::from_pem_bundle(&pem(path)?).map_err(|e| unusable(path, e))?,
        None => Vec::new(),
    };
    let mut builder = Client::builder()
        .tls_certs_only(trusted)
        .no_proxy()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none());
    if let (Some(cert), Some(key)) = (cert, key) {
        let mut both = pem(cert)?;
        both.push(b'\n');
        both.extend(pem(key)?);
        builder = builder.identity(Identity::from_pem(&both).map_err(|e| unusable(cert, e))?);
    }
    Ok(builder)
}

/// The address of an endpoint, `host:port` or with its scheme; without one it is `https` if that is wanted.
pub fn address(endpoint: &str, tls: bool) -> Result<Url, String> {
    let scheme = if tls { "https" } else { "http" };
    let address =
        if endpoint.contains("://") { endpoint.to_owned() } else { format!("{scheme}://{endpoint}") };
    Url::parse(&address).map_err(|e| format!("this is no address: {e}; write {scheme}://host:port"))
}

/// reqwest's own words repeat the address; the cause is what people need.
pub fn words(error: &reqwest::Error) -> String {
    let mut cause = std::error::Error::source(error);
    let mut text = None;
    while let Some(inner) = cause {
        text = Some(inner.to_string());
        cause = inner.source();
    }
    text.unwrap_or_else(|| error.to_string())
}

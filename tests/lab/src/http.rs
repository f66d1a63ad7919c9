//! Questions over HTTP, to Patroni, etcd and the agents.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Asks without proxy and without certificates: everything is on loopback.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
}

impl Http {
    /// A client whose questions are given up after `limit`.
    pub fn new(limit: Duration) -> Result<Self> {
        let client = reqwest::Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(limit)
            .build()
            .context("making an HTTP client")?;
        Ok(Self { client })
    }

    /// Status code and body.
    pub async fn get(&self, url: &str) -> Result<(u16, String)> {
        let answer = self.client.get(url).send().await.with_context(|| format!("GET {url}"))?;
        let code = answer.status().as_u16();
        Ok((code, answer.text().await.with_context(|| format!("reading the answer of {url}"))?))
    }

    /// The JSON of an answer that must be 200.
    pub async fn json(&self, url: &str) -> Result<Value> {
        match self.get(url).await? {
            (200, body) => serde_json::from_str(&body).with_context(|| format!("{url}: not JSON")),
            (code, body) => bail!("{url} answers {code}: {}", body.trim()),
        }
    }

    /// Sends JSON; the answer's text if the code is one of success.
    pub async fn send(&self, method: reqwest::Method, url: &str, body: &Value) -> Result<String> {
        let answer = self
            .client
            .request(method.clone(), url)
            .json(body)
            .send()
            .await
            .with_context(|| format!("{method} {url}"))?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| format!("reading the answer of {url}"))?;
        if !status.is_success() {
            bail!("{method} {url} answers {}: {}", status.as_u16(), text.trim());
        }
        Ok(text)
    }
}

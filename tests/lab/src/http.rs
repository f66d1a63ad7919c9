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
        Self::keeping(limit, 0)
    }

    /// The same, and so many connections to a server stay open between questions.
    pub fn keeping(limit: Duration, connections: usize) -> Result<Self> {
        let client = reqwest::Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .pool_max_idle_per_host(connections)
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

    /// Sends JSON and leaves the answer open: it goes on for as long as the other side wants.
    pub async fn stream(&self, url: &str, body: &Value) -> Result<reqwest::Response> {
        let endless = Duration::from_secs(24 * 3600);
        let asked = self.client.post(url).json(body).timeout(endless).send().await;
        let answer = asked.with_context(|| format!("POST {url}"))?;
        match answer.status().is_success() {
            true => Ok(answer),
            false => bail!("POST {url} answers {}", answer.status()),
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

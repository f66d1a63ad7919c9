//! The members as `GET /cluster` lists them, and the dynamic configuration as `GET /config` gives it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde_json::{Map, Value};

/// Who is there, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    /// By name.
    pub members: BTreeMap<String, Listed>,
    /// Patroni's dynamic configuration, as it came.
    pub config: Vec<u8>,
    /// Names that `/cluster` calls synchronous.
    pub sync: Vec<String>,
}

/// One member as another one knows it from the store. Its role is not taken from there: `/cluster` calls everybody a replica
/// who does not hold the lock, also a primary that has lost it and does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Where clients reach its server.
    pub conn_url: Option<String>,
    /// Its REST API.
    pub api_url: Option<String>,
    /// Patroni's word.
    pub state: String,
    /// Its timeline.
    pub timeline: Option<u64>,
    /// As they came.
    pub tags: Value,
}

impl Directory {
    /// Reads both answers.
    ///
    /// # Errors
    /// A sentence.
    pub fn read(scope: &str, cluster: &[u8], config: &[u8]) -> Result<Self, String> {
        let no_list = || "GET /cluster gave no list of members: is this Patroni's REST API?".to_string();
        let page = object(cluster).map_err(|e| format!("GET /cluster: {e}"))?;
        if let Some(other) = page.get("scope").and_then(Value::as_str).filter(|other| *other != scope) {
            return Err(format!("GET /cluster answers for scope {other}, not {scope}"));
        }
        let list = page.get("members").and_then(Value::as_array).ok_or_else(no_list)?;
        let config_read = object(config).map_err(|e| format!("GET /config: {e}"))?;
        if !config_read.contains_key("ttl") && !config_read.contains_key("loop_wait") {
            return Err("GET /config gave neither ttl nor loop_wait: is this Patroni's REST API?".into());
        }
        let mut directory = Directory { members: BTreeMap::new(), config: config.to_vec(), sync: Vec::new() };
        for line in list {
            let Some(name) = line["name"].as_str().filter(|n| !n.is_empty() && !n.contains('/')) else {
                continue;
            };
            if line["role"].as_str().is_some_and(|role| role.ends_with("_standby")) {
                directory.sync.push(name.into());
            }
            directory.members.insert(name.into(), listed(line));
        }
        match directory.members.is_empty() {
            true => Err(no_list()),
            false => Ok(directory),
        }
    }

    /// The member whose REST API has this base address.
    pub fn member_at(&self, base: &str) -> Option<&str> {
        let mut members = self.members.iter();
        let at = |listed: &Listed| listed.api_url.as_deref().map(api_base) == Some(base);
        members.find(|(_, listed)| at(listed)).map(|(name, _)| name.as_str())
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("the answer is JSON, but no object".into()),
        Err(e) => Err(format!("the answer is not JSON ({e})")),
    }
}

fn listed(line: &Value) -> Listed {
    let text = |key: &str| line[key].as_str().map(Into::into);
    Listed {
        conn_url: text("host").map(|host: String| conn_url(&host, line["port"].as_u64().unwrap_or(5432))),
        api_url: text("api_url"),
        state: text("state").unwrap_or_default(),
        timeline: line["timeline"].as_u64(),
        tags: line["tags"].clone(),
    }
}

fn conn_url(host: &str, port: u64) -> String {
    match host.contains(':') {
        true => format!("postgres://[{host}]:{port}/postgres"),
        false => format!("postgres://{host}:{port}/postgres"),
    }
}

/// `http://10.0.0.1:8008/patroni` -> `http://10.0.0.1:8008`.
pub(crate) fn api_base(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find('/').map_or(url.len(), |i| start + i);
    &url[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &[u8] = br#"{"ttl": 20, "loop_wait": 5}"#;

    #[test]
    fn a_page_of_patroni_is_read() {
        let page = br#"{"members": [
            {"name": "pg1", "role": "leader", "state": "running", "api_url": "http://10.0.0.1:8008/patroni",
             "host": "10.0.0.1", "port": 5432, "timeline": 3, "tags": {"nofailover": true}},
            {"name": "pg2", "role": "sync_standby", "state": "streaming", "api_url": "https://[2001:db8::2]:8008/patroni",
             "host": "2001:db8::2", "port": 5433, "timeline": 3, "lag": 0},
            {"name": "pg3", "role": "replica", "state": "stopped", "api_url": "http://10.0.0.3:8008/patroni", "lag": "unknown"},
            {"role": "replica"}], "scope": "main"}"#;
        let read = Directory::read("main", page, CONFIG).expect("it is Patroni's");
        assert_eq!(read.members.keys().collect::<Vec<_>>(), ["pg1", "pg2", "pg3"]);
        assert_eq!(read.members["pg2"].conn_url.as_deref(), Some("postgres://[2001:db8::2]:5433/postgres"));
        assert_eq!(read.members["pg3"].conn_url, None);
        assert_eq!(read.sync, ["pg2"]);
        assert_eq!(read.member_at("https://[2001:db8::2]:8008"), Some("pg2"));
        assert_eq!(read.member_at("http://10.0.0.9:8008"), None);
    }

    #[test]
    fn what_is_no_page_of_this_cluster_is_refused() {
        let why = |cluster: &str, config: &[u8]| {
            Directory::read("main", cluster.as_bytes(), config).expect_err("it is none")
        };
        let page = r#"{"members": [{"name": "pg1"}]}"#;
        assert!(why("<html>", CONFIG).starts_with("GET /cluster: the answer is not JSON"));
        assert!(why("[]", CONFIG).contains("no object"));
        assert!(why(r#"{"members": []}"#, CONFIG).contains("no list of members"));
        assert!(why(r#"{"members": [], "scope": "other"}"#, CONFIG).contains("scope other, not main"));
        assert!(why(page, b"{}").contains("neither ttl nor loop_wait"));
        assert!(why(page, b"").starts_with("GET /config: the answer is not JSON"));
    }

    #[test]
    fn the_base_of_an_api_url() {
        assert_eq!(api_base("http://10.0.0.1:8008/patroni"), "http://10.0.0.1:8008");
        assert_eq!(api_base("https://[::1]:8008"), "https://[::1]:8008");
        assert_eq!(api_base("nonsense"), "nonsense");
    }
}

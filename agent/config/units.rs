//! Durations, sizes and addresses as they are written in the configuration.

use std::net::Ipv6Addr;
use std::time::Duration;

/// `250ms`, `3s`, `10m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a duration: write a number and a unit, like 250ms, 3s, 10m or 1h");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).map(Duration::from_millis).ok_or_else(bad)
}

/// A size as PostgreSQL reads it: `16MB`, `1.5 GB`, `512kB`; units are powers of 1024, without one it is bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || {
        format!("`{text}` is not a size: write a number and one of the units B, kB, MB, GB, TB, like 16MB")
    };
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return Err(bad()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(bad);
    }
    let fraction: f64 = number.parse().map_err(|_| bad())?;
    let bytes = (fraction * factor as f64).round();
    // Beyond 2^53 a fraction of a byte means nothing, and the cast below is exact under it.
    if bytes.is_finite() && bytes < 9e15 { Ok(bytes as u64) } else { Err(bad()) }
}

/// `host:port` with a name, an IPv4 address or an IPv6 address in brackets. Gives the host without brackets.
pub fn host_port(text: &str) -> Result<(String, u16), String> {
    let bad = |why: &str| format!("`{text}` is not host:port: {why}");
    let (host, port) =
        text.rsplit_once(':').ok_or_else(|| bad("the port is missing, as in 10.0.0.1:2379"))?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or_else(|| bad("the closing bracket is missing"))?;
            let plain = inner.split('%').next().unwrap_or(inner);
            plain.parse::<Ipv6Addr>().map_err(|_| bad("there is no IPv6 address in the brackets"))?;
            inner
        }
        None if host.contains(':') => return Err(bad("write an IPv6 address in brackets, as in [::1]:2379")),
        None => host,
    };
    let odd = |c: char| c.is_whitespace() || c.is_control() || "/@?#,'\"\\".contains(c);
    if host.is_empty() || host.contains(odd) {
        return Err(bad("the host is not a name or an address"));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((host.to_owned(), port)),
        _ => Err(bad("the port is not a number from 1 to 65535")),
    }
}

/// Joins what [`host_port`] took apart.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// `http(s)://host:port` or `host:port` (which gets `scheme`), without a path. Gives the address with its scheme.
pub fn endpoint(text: &str, scheme: &str) -> Result<String, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((given @ ("http" | "https"), rest)) => (given, rest),
        Some((other, _)) => {
            return Err(format!("`{other}` is not a known scheme: write http:// or https://"));
        }
        None => (scheme, text),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err("a login does not belong here: use username and password_file".to_owned());
    }
    let (host, port) = host_port(rest)?;
    Ok(format!("{scheme}://{}", authority(&host, port)))
}

/// `host:port` or `host:port/chroot`. Gives the address and the chroot, which is empty for the root.
pub fn zookeeper_endpoint(text: &str) -> Result<(String, String), String> {
    if text.contains("://") {
        return Err(format!("`{text}` is not host:port: ZooKeeper's addresses have no scheme"));
    }
    let (address, chroot) = text.find('/').map_or((text, ""), |at| text.split_at(at));
    let (host, port) = host_port(address)?;
    let chroot = chroot.trim_end_matches('/');
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == ',';
    let bad = |node: &str| node.is_empty() || node == "." || node == ".." || node.contains(odd);
    if !chroot.is_empty() && chroot[1..].split('/').any(bad) {
        return Err(format!("`{chroot}` is not a chroot: write it like /a/b"));
    }
    Ok((authority(&host, port), chroot.to_owned()))
}

/// An `http://` or `https://` address with anything behind it. Gives it without the last slash.
pub fn url(text: &str) -> Result<String, String> {
    // First, so that no other message repeats a secret.
    if text.contains('@') {
        return Err("a login does not belong into a URL: secrets come from files".to_owned());
    }
    let parsed = reqwest::Url::parse(text).map_err(|e| format!("`{text}` is not a URL: {e}"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(format!("`{text}` is not an http:// or https:// URL"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "3", "s", "-1s", "1.5s", "3 s", "1d", "99999999999999999999s", "9999999999999999999h"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_postgres_sizes() {
        assert_eq!(size("16MB"), Ok(16 << 20));
        assert_eq!(size("16 MB"), Ok(16 << 20));
        assert_eq!(size("1.5kB"), Ok(1536));
        assert_eq!(size("2TB"), Ok(2 << 40));
        assert_eq!(size("123"), Ok(123));
        assert_eq!(size("0B"), Ok(0));
        for bad in ["", "MB", "16mb", "16M", "-1kB", "1.2.3kB", "99999999999999999999", "16777216TB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(host_port("[::1]:80"), Ok(("::1".to_owned(), 80)));
        assert_eq!(host_port("db.example:5432"), Ok(("db.example".to_owned(), 5432)));
        for bad in ["::1:80", "host", "host:", ":80", "host:0", "host:70000", "[::1:80", "[x]:80", "a b:80"] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
        assert_eq!(endpoint("10.0.0.1:2379", "https"), Ok("https://10.0.0.1:2379".to_owned()));
        assert_eq!(endpoint("http://[fe80::1]:2379/", "https"), Ok("http://[fe80::1]:2379".to_owned()));
        for bad in ["ftp://h:1", "http://h", "http://h:1/x", "http://u:p@h:1"] {
            assert!(endpoint(bad, "http").is_err(), "{bad}");
        }
        let pair = |address: &str, chroot: &str| Ok((address.to_owned(), chroot.to_owned()));
        assert_eq!(zookeeper_endpoint("zk1:2181"), pair("zk1:2181", ""));
        assert_eq!(zookeeper_endpoint("zk1:2181/"), pair("zk1:2181", ""));
        assert_eq!(zookeeper_endpoint("[::1]:2181/db/prod/"), pair("[::1]:2181", "/db/prod"));
        for bad in ["zk1", "zk1/a", "tcp://zk1:2181", "zk1:2181//a", "zk1:2181/a b", "zk1:2181/..", "a:1,b:1"]
        {
            assert!(zookeeper_endpoint(bad).is_err(), "{bad}");
        }
        assert_eq!(url("http://127.0.0.1:8008/"), Ok("http://127.0.0.1:8008".to_owned()));
        for bad in ["127.0.0.1:8008", "ftp://h/", "http://u@h/", ""] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}

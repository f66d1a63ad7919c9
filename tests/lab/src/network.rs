//! The lab's network: one range of loopback addresses, one address for each host, and cuts between hosts.
//!
//! A range `127.a.b.0/24` belongs to one lab, so labs stand side by side on the same port numbers. On loopback every
//! sender has the source address 127.0.0.1; who sends is told by the group that a host's processes run with. A table of
//! the lab's own marks each connection with its sender's group when it is made, and a cut drops what belongs to such
//! connections, in both directions, without an answer: as a network does that lost a cable.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Group number of the host with address `.0`; the host's last number is added.
const GROUP_BASE: u32 = 64_000;
/// Group number of the agent of the host with address `.0`: the agent can be told from the other programs of its host.
const AGENT_GROUP_BASE: u32 = GROUP_BASE + 256;
const PORT_SHIFTS: [u16; 4] = [0, 10_000, 20_000, 30_000];
/// A single busy address is passed by; a listener on all addresses blocks its port on every range.
const RANGE_TRIES: u64 = 4;

/// The range of addresses of one lab, and what is added to every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    a: u8,
    b: u8,
    shift: u16,
}

impl Network {
    /// A range on which every wanted (last number, port) can be listened on now.
    pub fn pick(wanted: &[(u8, u16)]) -> Result<Self> {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        let seed = nanos ^ (u64::from(std::process::id()) << 20);
        for shift in PORT_SHIFTS {
            if wanted.iter().any(|(_, port)| port.checked_add(shift).is_none()) {
                continue;
            }
            for step in 0..RANGE_TRIES {
                // Any odd factor will do: neighbours in time should not be neighbours in range.
                let mixed = seed.wrapping_add(step).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
                let network = Self { a: 64 + (mixed & 0x3f) as u8, b: (mixed >> 8) as u8, shift };
                if wanted.iter().all(|(host, port)| network.is_free(*host, *port)) {
                    return Ok(network);
                }
            }
        }
        bail!("no free range of loopback addresses for the {} ports of the lab", wanted.len())
    }

    fn is_free(&self, host: u8, port: u16) -> bool {
        TcpListener::bind(SocketAddrV4::new(self.host(host), self.port(port))).is_ok()
    }

    /// The address with this last number.
    pub fn host(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.a, self.b, last)
    }

    /// The port the lab uses where a real cluster would use `usual`.
    pub fn port(&self, usual: u16) -> u16 {
        usual + self.shift
    }

    /// The group that the processes of the host with this address run with.
    pub fn group(address: Ipv4Addr) -> u32 {
        GROUP_BASE + u32::from(address.octets()[3])
    }

    /// The group that the agent of the host with this address runs with.
    pub fn agent_group(address: Ipv4Addr) -> u32 {
        AGENT_GROUP_BASE + u32::from(address.octets()[3])
    }

    /// All groups of a host, as nft names a set.
    fn groups(address: Ipv4Addr) -> String {
        format!("{{ {}, {} }}", Self::group(address), Self::agent_group(address))
    }

    fn table(&self) -> String {
        format!("inet pgsquire_lab_{}_{}", self.a, self.b)
    }

    /// Starts to mark connections with the host that made them. Cuts work for connections made after this.
    pub fn watch_senders(&self, hosts: &[Ipv4Addr]) -> Result<()> {
        nft(&self.marking_rules(hosts)).context("preparing the network for cuts")
    }

    fn marking_rules(&self, hosts: &[Ipv4Addr]) -> String {
        let (table, range) = (self.table(), format!("{}/24", self.host(0)));
        let mut rules = format!(
            "table {table} {{\n chain senders {{ type filter hook output priority mangle; policy accept; }}\n \
             chain cuts {{ type filter hook input priority filter; policy accept; }}\n}}\n"
        );
        for group in hosts.iter().flat_map(|h| [Self::group(*h), Self::agent_group(*h)]) {
            rules += &format!(
                "add rule {table} senders ip daddr {range} ct direction original ct mark 0 \
                 meta skgid {group} ct mark set {group}\n"
            );
        }
        rules
    }

    /// Nothing passes between `host` and anybody else, the test's own clients included.
    pub fn isolate(&self, host: Ipv4Addr) -> Result<()> {
        let (table, group, range) = (self.table(), Self::groups(host), self.host(0));
        nft(&format!(
            "add rule {table} cuts ct mark {group} ct original ip daddr {range}/24 ct original ip daddr != {host} drop\n\
             add rule {table} cuts ct mark != {group} ct original ip daddr {host} drop\n"
        ))
        .with_context(|| format!("cutting {host} off"))
    }

    /// Nothing passes between the two hosts, whoever made the connection.
    pub fn cut(&self, one: Ipv4Addr, other: Ipv4Addr) -> Result<()> {
        let table = self.table();
        let rule = |from: Ipv4Addr, to: Ipv4Addr| {
            format!("add rule {table} cuts ct mark {} ct original ip daddr {to} drop\n", Self::groups(from))
        };
        nft(&(rule(one, other) + &rule(other, one))).with_context(|| format!("cutting {one} from {other}"))
    }

    /// What a host's programs except its agent send to another host does not get there.
    pub fn cut_without_agent(&self, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
        let (table, group) = (self.table(), Self::group(from));
        nft(&format!("add rule {table} cuts ct mark {group} ct original ip daddr {to} drop\n"))
            .with_context(|| format!("cutting {from} without its agent from {to}"))
    }

    /// Ends all cuts.
    pub fn heal(&self) -> Result<()> {
        nft(&format!("flush chain {} cuts\n", self.table())).context("ending the network cuts")
    }

    /// Takes the lab's table away; one that is not there is not an error.
    pub fn forget_senders(&self) {
        let table = self.table();
        let _ = nft(&format!("table {table} {{ }}\ndelete table {table}\n"));
    }

    /// The shell command that takes the lab's table away.
    pub fn forget_command(&self) -> String {
        format!("nft delete table {} 2>/dev/null", self.table())
    }
}

/// Hands rules to nft, all or nothing.
fn nft(rules: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting nft")?;
    child.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output().context("waiting for nft")?;
    if output.status.success() {
        return Ok(());
    }
    bail!("nft: {}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_not_picked() {
        let network = Network::pick(&[(11, 5432)]).expect("a free range");
        let _held = TcpListener::bind((network.host(11), network.port(5432))).expect("it is free");
        assert!(!network.is_free(11, 5432));
        assert!(network.is_free(12, 5432));
    }

    #[test]
    fn a_listener_on_all_addresses_shifts_the_ports() {
        let everywhere = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = everywhere.local_addr().expect("address").port();
        if port < u16::MAX - 10_000 {
            let network = Network::pick(&[(11, port)]).expect("a free range");
            assert_ne!(network.port(port), port);
        }
    }

    #[test]
    fn the_rules_name_the_table_and_each_group() {
        let network = Network { a: 70, b: 3, shift: 0 };
        let rules = network.marking_rules(&[network.host(11), network.host(31)]);
        assert!(rules.contains("pgsquire_lab_70_3") && rules.contains("127.70.3.0/24"));
        assert!(rules.contains("skgid 64011") && rules.contains("ct mark set 64031"));
        assert!(rules.contains("skgid 64267"), "the agent of .11: {rules}");
    }
}

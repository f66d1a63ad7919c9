//! The folder of a lab and what lies in it before anything runs.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::agent;
use crate::classic;
use crate::etcd;
use crate::hooks;
use crate::network::Network;
use crate::patroni::{self, POSTGRES_PORT, REST_PORT};
use crate::process;
use crate::setup;
use crate::spec::{PgBouncerBuild, Spec, Store};
use crate::state::{Host, HostRole, State};

const FIRST_MEMBER: u8 = 11;
const FIRST_ETCD: u8 = 21;
const FIRST_POOLER: u8 = 31;
/// Longest path of a unix socket that the system takes.
const SOCKET_PATH_LIMIT: usize = 107;

/// Folder, addresses and files of a lab; nothing runs yet.
pub(crate) fn lay_out(mut spec: Spec) -> Result<State> {
    if let Some(agent) = &spec.agent {
        spec.agent = Some(fs::canonicalize(agent).with_context(|| format!("the agent {}", agent.display()))?);
    }
    let postgres_bin = patroni::postgres_programs()?;
    let network = Network::pick(&wanted_ports(&spec)).context("finding addresses for the lab")?;
    let dir = make_folder(spec.dir.as_deref())?;
    let hosts = hosts(&spec, &network, &dir);
    let addresses: Vec<Ipv4Addr> = hosts.iter().map(|h| h.address).collect();
    let cuts = if process::is_root() {
        network.watch_senders(&addresses).map_err(|e| format!("{e:#}"))
    } else {
        Err("cutting hosts from each other needs root".into())
    };
    let state = State {
        patroni_packages: dir.join("patroni"),
        dir,
        spec,
        network,
        hosts,
        postgres_bin,
        cuts,
        processes: Default::default(),
    };
    if let Err(e) = fill(&state) {
        state.network.forget_senders();
        let _ = fs::remove_dir_all(&state.dir);
        return Err(e);
    }
    Ok(state)
}

fn wanted_ports(spec: &Spec) -> Vec<(u8, u16)> {
    let mut wanted = Vec::new();
    for n in 0..spec.members as u8 {
        wanted.extend([POSTGRES_PORT, REST_PORT, agent::HTTP_PORT].map(|port| (FIRST_MEMBER + n, port)));
    }
    if let Store::Etcd(count) = spec.store {
        for n in 0..count as u8 {
            wanted.extend([etcd::CLIENT_PORT, etcd::PEER_PORT].map(|port| (FIRST_ETCD + n, port)));
        }
    }
    for (n, pooler) in spec.poolers.iter().enumerate() {
        wanted.extend([pooler.port, agent::HTTP_PORT].map(|port| (FIRST_POOLER + n as u8, port)));
    }
    wanted
}

fn make_folder(wanted: Option<&Path>) -> Result<PathBuf> {
    let dir = match wanted {
        Some(dir) => {
            fs::create_dir(dir).with_context(|| format!("making the lab's folder {}", dir.display()))?;
            dir.to_path_buf()
        }
        None => tempfile::Builder::new()
            .prefix("pgsquire-lab-")
            .tempdir()
            .context("making the lab's folder")?
            .keep(),
    };
    let dir = fs::canonicalize(dir)?;
    fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
    Ok(dir)
}

fn hosts(spec: &Spec, network: &Network, dir: &Path) -> Vec<Host> {
    let host = |name: String, last: u8, role: HostRole| Host {
        folder: dir.join(&name),
        name,
        address: network.host(last),
        role,
    };
    let etcd = match spec.store {
        Store::Etcd(count) => count as u8,
        Store::Foreign { .. } => 0,
    };
    let etcd = (0..etcd).map(|n| host(format!("etcd{}", n + 1), FIRST_ETCD + n, HostRole::Etcd));
    let members =
        (0..spec.members as u8).map(|n| host(format!("pg{}", n + 1), FIRST_MEMBER + n, HostRole::Member));
    let poolers = (0u8..).zip(&spec.poolers);
    let poolers = poolers.map(|(n, p)| host(p.name.clone(), FIRST_POOLER + n, HostRole::Pooler));
    etcd.chain(members).chain(poolers).collect()
}

/// Folders and files of all hosts, and the copies of what they run.
fn fill(state: &State) -> Result<()> {
    setup::copy_patroni(&state.spec.patroni, &state.patroni_packages)?;
    if state.spec.pgbouncer == PgBouncerBuild::Debian13 {
        setup::copy_pgbouncer_13(&state.dir.join(setup::PGBOUNCER_13))?;
    }
    if let Some(agent) = &state.spec.agent {
        setup::copy_agent(agent, &agent::program(state))?;
    }
    for host in &state.hosts {
        for folder in [host.folder.clone(), host.sockets()] {
            fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
            process::give_to_service_user(&folder)?;
        }
        let longest = host.sockets().join(".s.PGSQL.65535").as_os_str().len();
        ensure!(longest <= SOCKET_PATH_LIMIT, "{} is too long for a unix socket", host.sockets().display());
        if host.role == HostRole::Member {
            patroni::configure(state, host)?;
            classic::write_script(state, host)?;
            hooks::write_script(state, host)?;
        }
        if state.has_agent(host) {
            agent::configure(state, host)?;
        }
        give_files(host, &["patroni.yml", "on-role-change.sh", "hook.sh", "agent.toml"])?;
    }
    Ok(())
}

pub(crate) fn give_files(host: &Host, names: &[&str]) -> Result<()> {
    for file in names.iter().map(|n| host.file(n)).filter(|f| f.exists()) {
        process::give_to_service_user(&file)?;
    }
    Ok(())
}

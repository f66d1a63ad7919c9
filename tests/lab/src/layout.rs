//! The folder of a lab and what lies in it before anything runs.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::agent;
use crate::classic;
use crate::hooks;
use crate::network::Network;
use crate::patroni::{self, POSTGRES_PORT, REST_PORT};
use crate::process;
use crate::setup;
use crate::spec::{PgBouncerBuild, Spec};
use crate::state::{Host, HostRole, State};
use crate::store;

const FIRST_MEMBER: u8 = 11;
const FIRST_STORE: u8 = 21;
const FIRST_POOLER: u8 = 31;
/// Longest path of a unix socket that the system takes.
const SOCKET_PATH_LIMIT: usize = 107;

/// Folder, addresses and files of a lab; nothing runs yet.
pub(crate) fn lay_out(mut spec: Spec) -> Result<State> {
    store::check(&spec)?;
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
    for n in 0..spec.store.servers() as u8 {
        wanted.extend(spec.store.ports().iter().map(|port| (FIRST_STORE + n, *port)));
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
    let role = spec.store.role();
    let store = (0..spec.store.servers() as u8)
        .map(|n| host(format!("{}{}", role.component().name(), n + 1), FIRST_STORE + n, role));
    let members =
        (0..spec.members as u8).map(|n| host(format!("pg{}", n + 1), FIRST_MEMBER + n, HostRole::Member));
    let poolers = (0u8..).zip(&spec.poolers);
    let poolers = poolers.map(|(n, p)| host(p.name.clone(), FIRST_POOLER + n, HostRole::Pooler));
    store.chain(members).chain(poolers).collect()
}

/// Folders and files of all hosts, and the copies of what they run.
fn fill(state: &State) -> Result<()> {
    setup::copy_patroni(&state.spec.patroni, &state.patroni_packages)?;
    if state.spec.pgbouncer == PgBouncerBuild::Debian13 {
        setup::copy_pgbouncer_13(&state.dir.join(setup::PGBOUNCER_13))?;
    }
    if let Some(agent) = &state.spec.agent {
        setup::copy_program(agent, &agent::program(state))?;
    }
    store::copy_programs(state)?;
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
        store::configure(state, host)?;
        if state.has_agent(host) {
            agent::configure(state, host)?;
        }
        give_files(
            host,
            &["patroni.yml", "on-role-change.sh", "hook.sh", "agent.toml", "consul.json", "zoo.cfg"],
        )?;
    }
    Ok(())
}

pub(crate) fn give_files(host: &Host, names: &[&str]) -> Result<()> {
    for file in names.iter().map(|n| host.file(n)).filter(|f| f.exists()) {
        process::give_to_service_user(&file)?;
    }
    Ok(())
}

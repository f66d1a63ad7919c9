//! The workers of a host: what each part of an order does.

use crate::agent_host::{Fate, Host, Job};
use crate::world::{Thing, World};
use pgsquire_core::effect::{Order, PoolerOrder};
use pgsquire_core::event::{Event, LocalServer, Outcome};
use pgsquire_core::pgbouncer::console::ConsoleView;
use pgsquire_core::wal::{Lsn, Timeline};
use std::collections::BTreeMap;
use std::time::Duration;

/// What comes after a part.
pub enum Next {
    /// Another part.
    Part,
    /// Nothing; it ended so.
    Done(Outcome),
}

impl World {
    /// The next part of an order.
    pub fn part(&mut self, job: &Job) -> Next {
        match &job.order {
            Order::ReadStore { cluster } => self.read_store(job, cluster),
            Order::AskMember { url, .. } => {
                Next::Done(self.ask(job, url, self.hosts[job.host].trouble.rest_cut))
            }
            Order::AskLocalPatroni { url } => Next::Done(self.ask(job, url, false)),
            Order::ProbeLocal => Next::Done(self.probe_local(job.host)),
            Order::KeepTerm { cluster, term, .. } => {
                if self.hosts[job.host].trouble.state_full {
                    return Next::Done(Outcome::Failed { why: "no space left".into() });
                }
                let terms = &mut self.hosts[job.host].state.terms;
                match term {
                    Some(term) => terms.insert(cluster.clone(), term.clone()),
                    None => terms.remove(cluster),
                };
                Next::Done(Outcome::Done)
            }
            Order::Pooler { pooler, order } => {
                let known = self.hosts[job.host].poolers.iter().position(|p| p.name == *pooler);
                known.map_or(Next::Done(Outcome::Done), |p| self.pooler_part(job, p, order))
            }
            Order::Publish { cluster, keys } => self.publish_part(job, cluster, keys),
            Order::PutKey { cluster, key, value } => self.put_key(job, cluster, key, value.as_ref()),
            Order::WatchServer { cluster, endpoint } => {
                self.watch_server(job.host, cluster, endpoint.as_ref());
                Next::Done(Outcome::Done)
            }
            Order::AnswerHook { .. } | Order::Record(_) => Next::Done(Outcome::Done),
        }
    }

    fn read_store(&mut self, job: &Job, cluster: &str) -> Next {
        let follows = &self.hosts[job.host].follows;
        let Some(f) = follows.iter().position(|f| self.clusters[f.cluster].name == cluster) else {
            return Next::Done(Outcome::Failed { why: "no such cluster".into() });
        };
        if job.fate != Fate::Fine {
            return Next::Done(Outcome::Failed { why: "no answer within 2s".into() });
        }
        if let Some(read) = self.read_polled(job.host, f) {
            let cluster = cluster.to_string();
            return Next::Done(match read {
                Err(why) => Outcome::Failed { why },
                Ok(read) => {
                    self.later(
                        job.pace,
                        Thing::Tell(job.host, job.run, vec![Event::StoreRead { cluster, read }]),
                    );
                    Outcome::Done
                }
            });
        }
        match self.read_for(job.host, f, job.started, job.pace) {
            Err(why) => Next::Done(Outcome::Failed { why }),
            Ok(event) => {
                self.later(job.pace, Thing::Tell(job.host, job.run, vec![event]));
                Next::Done(Outcome::Done)
            }
        }
    }

    fn ask(&self, job: &Job, url: &str, cut: bool) -> Outcome {
        let ip = url.trim_start_matches("http://").trim_end_matches(":8008");
        let wall = Duration::from_micros((job.started - self.hosts[job.host].clock).as_micros());
        match self.rest_answer(job.host, ip).filter(|_| !cut) {
            Some((code, body)) => Outcome::Member { code, body, wall },
            None => Outcome::Failed { why: "no answer within 2s".into() },
        }
    }

    fn probe_local(&self, h: usize) -> Outcome {
        let server = self.hosts[h].local.map(|at| &self.member(at).pg).filter(|pg| pg.accepts());
        match server {
            Some(pg) => Outcome::Local(LocalServer {
                in_recovery: pg.in_recovery,
                timeline: Some(Timeline(pg.timeline)),
                lsn: Some(Lsn(self.wal().saturating_sub(pg.lag))),
            }),
            None => Outcome::Failed { why: "connection refused".into() },
        }
    }

    /// A part of an order for a pooler; the order of the parts is that of the shell.
    fn pooler_part(&mut self, job: &Job, p: usize, order: &PoolerOrder) -> Next {
        let h = job.host;
        let pooler = &self.hosts[h].poolers[p];
        let console = |done: Outcome| match !pooler.up || pooler.console_dead {
            true => Outcome::Failed { why: "the console did not answer within 2s".into() },
            false => done,
        };
        if is_for_console(order, job.part) && matches!(console(Outcome::Done), Outcome::Failed { .. }) {
            return Next::Done(console(Outcome::Done));
        }
        match order {
            PoolerOrder::ReadFiles => Next::Done(Outcome::Files(pooler.disk.clone())),
            PoolerOrder::Look => Next::Done(Outcome::Console(self.look(h, p))),
            PoolerOrder::Write { files, keep_rejected } => self.write_part(job, p, files, *keep_rejected),
            PoolerOrder::Pause(_)
            | PoolerOrder::ExtendPause(_)
            | PoolerOrder::ZeroMinPoolSize
            | PoolerOrder::CutPaused { .. }
            | PoolerOrder::EndPause => self.pause_part(job, p, order),
            _ => self.console_part(job, p, order),
        }
    }

    fn look(&mut self, h: usize, p: usize) -> ConsoleView {
        let members = self.clusters.iter().flat_map(|c| &c.members).filter(|m| m.host != m.ip);
        let addresses = members.map(|m| (m.host.clone(), m.ip.clone())).collect();
        self.hosts[h].poolers[p].look(&addresses)
    }

    /// One file after the other, each only over what is expected there.
    fn write_part(
        &mut self,
        job: &Job,
        p: usize,
        files: &BTreeMap<String, (Vec<u8>, Vec<u8>)>,
        keep_rejected: bool,
    ) -> Next {
        let h = job.host;
        let Some((path, (expected, wanted))) = files.iter().nth(job.part) else {
            return Next::Done(Outcome::Done);
        };
        let there = self.hosts[h].poolers[p].disk.parts.get(path).cloned().unwrap_or_default();
        if there != *expected {
            return Next::Done(Outcome::ChangedMeanwhile);
        }
        if keep_rejected {
            self.hosts[h].poolers[p].rejected.push(there);
        }
        let before = self.hosts[h].poolers[p].disk.clone();
        self.hosts[h].poolers[p].disk.parts.insert(path.clone(), wanted.clone());
        self.check_written(h, p, &before, files, keep_rejected);
        if job.part + 1 < files.len() { Next::Part } else { Next::Done(Outcome::Done) }
    }

    fn console_part(&mut self, job: &Job, p: usize, order: &PoolerOrder) -> Next {
        let (h, now) = (job.host, self.now);
        let name = self.hosts[h].poolers[p].name.clone();
        if matches!(order, PoolerOrder::Reload) {
            self.check_reload(h, p);
        }
        let Host { poolers, state, .. } = &mut self.hosts[h];
        let pooler = &mut poolers[p];
        match (order, job.part) {
            (PoolerOrder::KeepGood { files }, _) => {
                state.last_good.insert(name, files.clone());
            }
            (PoolerOrder::Reload, _) => pooler.reload(now),
            (PoolerOrder::BorrowLoginRetry { value }, 0) => {
                state.borrowed_login_retry.insert(name, value.clone());
                return Next::Part;
            }
            (PoolerOrder::BorrowLoginRetry { .. }, _) => pooler.login_retry = "0".into(),
            (PoolerOrder::ReturnLoginRetry { value }, 0) => {
                pooler.login_retry = value.clone();
                return Next::Part;
            }
            (PoolerOrder::ReturnLoginRetry { .. }, _) => {
                state.borrowed_login_retry.remove(&name);
            }
            (PoolerOrder::Reconnect { database }, _) => pooler.dirty(database),
            (PoolerOrder::Cut { database, stale }, part) => {
                if pooler.version >= (1, 24) {
                    pooler.kill_clients(database, stale);
                    return Next::Done(Outcome::Done);
                }
                let cuts = state.cut.entry(name).or_default();
                match part {
                    0 if !cuts.contains(database) => cuts.push(database.clone()),
                    0 => {}
                    1 => pooler.kill(database),
                    2 => pooler.resume(database),
                    _ => cuts.retain(|d| d != database),
                }
                return if part < 3 { Next::Part } else { Next::Done(Outcome::Done) };
            }
            (PoolerOrder::Resume { database }, 0) => {
                pooler.resume(database);
                return Next::Part;
            }
            (PoolerOrder::Resume { database }, _) => {
                state.cut.entry(name).or_default().retain(|d| d != database);
            }
            _ => {}
        }
        Next::Done(Outcome::Done)
    }
}

/// Whether this part of an order needs the console.
fn is_for_console(order: &PoolerOrder, part: usize) -> bool {
    match order {
        PoolerOrder::ReadFiles
        | PoolerOrder::Write { .. }
        | PoolerOrder::KeepGood { .. }
        | PoolerOrder::ExtendPause(_) => false,
        PoolerOrder::Pause(_) => part > 0,
        PoolerOrder::BorrowLoginRetry { .. } => part == 1,
        PoolerOrder::ReturnLoginRetry { .. } | PoolerOrder::Resume { .. } => part == 0,
        PoolerOrder::Cut { .. } => part < 3,
        _ => true,
    }
}

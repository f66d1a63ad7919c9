//! Which facts are due, and when the next ones will be.

use crate::config::{ClusterConfig, Config, OnDcsLoss, RouteTo, Truth};
use crate::effect::Order;
use crate::observed::{ClusterView, Observed};
use crate::rest::api_base;
use crate::rule::{Reason, Rule};
use crate::switch::SwitchState;
use crate::switch::before_stop::Step;
use crate::switching::Switches;
use crate::time::Time;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// Pause between probes of the local server.
const LOCAL_PAUSE: Duration = Duration::from_millis(500);
/// … of one that leads: a verdict rests on it.
const LEADING_PAUSE: Duration = Duration::from_millis(250);
/// … of one that has just taken the lock: clients wait for the moment in which it is writable. It grows with the wait.
const PROMOTING_PAUSE: Duration = Duration::from_millis(2);
/// … to this share of it.
const PROMOTING_SHARE: u32 = 256;
/// Pause between questions to a member whose answer is a settled matter.
const MEMBER_PAUSE: Duration = Duration::from_secs(1);
/// Pause between questions to a new leader that is about to become writable: each is one short request.
const PROMOTION_PAUSE: Duration = Duration::from_millis(15);
/// … whose own agent will say so sooner: every question takes its Patroni's time.
const SPOKEN_PAUSE: Duration = Duration::from_millis(100);
/// Pause between questions to a leader from which clients are held back: it may be writable again, or still.
const HELD_PAUSE: Duration = Duration::from_millis(50);
/// After this long without becoming writable it is asked less often.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(60);
/// … this often.
const PATIENT_PAUSE: Duration = Duration::from_millis(250);
/// The store is read no more often than this.
const SHORTEST_STORE_PAUSE: Duration = Duration::from_millis(250);
/// … to the local one, while a hook waits for its answer.
const HOOK_PAUSE: Duration = Duration::from_millis(5);
/// More agents than twice this many are not made room for: by then every pause is the longest.
const CROWD: u32 = 1000;
/// A question without an answer for this long is put again.
const LOST_AFTER: Duration = Duration::from_secs(6);

/// Something that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// All keys of a cluster.
    Store(String),
    /// A member (cluster, name).
    Member(String, String),
    /// The server on this host.
    Local,
    /// The Patroni on this host.
    LocalPatroni,
}

/// When each question was last put, and whether its answer is still out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    put: BTreeMap<Question, (Time, bool)>,
}

/// A question that is worth asking: how often, and how.
struct Wish {
    question: Question,
    pause: Duration,
    order: Order,
    reason: Reason,
}

impl Schedule {
    /// The answer came.
    pub fn answered(&mut self, question: &Question) {
        if let Some((_, out)) = self.put.get_mut(question) {
            *out = false;
        }
    }

    /// The question is due at once.
    pub fn hurry(&mut self, question: &Question) {
        if let Some((at, out)) = self.put.get_mut(question)
            && !*out
        {
            *at = Time::ZERO;
        }
    }

    /// Questions to put now, and when to look for the next ones.
    pub fn due(
        &mut self,
        config: &Config,
        observed: &Observed,
        switches: &Switches,
        now: Time,
    ) -> (Vec<(Question, Order, Reason)>, Time) {
        let wishes = wishes(config, observed, switches, now);
        self.put.retain(|question, _| wishes.iter().any(|wish| wish.question == *question));
        let (mut due, mut next) = (Vec::new(), Time::NEVER);
        for wish in wishes {
            let pause = match self.put.get(&wish.question) {
                None => None,
                Some((at, true)) => Some(*at + LOST_AFTER),
                Some((at, false)) => Some(*at + wish.pause),
            };
            match pause.filter(|at| *at > now) {
                Some(at) => next = next.min(at),
                None => {
                    self.put.insert(wish.question.clone(), (now, true));
                    next = next.min(now + LOST_AFTER);
                    due.push((wish.question, wish.order, wish.reason));
                }
            }
        }
        (due, next)
    }
}

fn wishes(config: &Config, observed: &Observed, switches: &Switches, now: Time) -> Vec<Wish> {
    let mut wishes = Vec::new();
    for cluster in &config.clusters {
        let view = &observed.clusters[&cluster.name];
        wishes.push(Wish {
            question: Question::Store(cluster.name.clone()),
            pause: store_pause(config, cluster, observed),
            order: Order::ReadStore { cluster: cluster.name.clone() },
            reason: Reason::new(
                Rule::FactAge,
                "the store's answer ages; renewals of the leader key cause no events",
            ),
        });
        members_to_ask(config, cluster, view, switches.get(&cluster.name), now, &mut wishes);
    }
    if let Some(local) = &config.local {
        if local.probe {
            wishes.push(Wish {
                question: Question::Local,
                pause: match observed.leads_here(config) {
                    true => observed.promoting_for(config, now).map_or(LEADING_PAUSE, |age| {
                        PROMOTING_PAUSE.max(age / PROMOTING_SHARE).min(LEADING_PAUSE)
                    }),
                    false => LOCAL_PAUSE,
                },
                order: Order::ProbeLocal,
                reason: Reason::new(Rule::PrimaryUp, "only the server knows whether it is in recovery"),
            });
        }
        if let Some(url) = &local.patroni_url {
            wishes.push(Wish {
                question: Question::LocalPatroni,
                pause: local_patroni_pause(switches.get(&local.cluster)),
                order: Order::AskLocalPatroni { url: url.clone() },
                reason: Reason::new(Rule::LocalServer, "it knows the name of the member on this host"),
            });
        }
    }
    wishes
}

/// A lost or late answer must not age the view past its limit; on the leader's host it must be younger than `loop_wait`
/// whenever `before_stop` comes.
fn store_pause(config: &Config, cluster: &ClusterConfig, observed: &Observed) -> Duration {
    let pause = cluster.max_fact_age / 3;
    let local = config.local.as_ref().is_some_and(|local| local.cluster == cluster.name);
    if !local || !observed.leads_here(config) {
        return pause;
    }
    let loop_wait = observed.clusters[&cluster.name].topology.config.loop_wait;
    pause.min(loop_wait / 2).max(SHORTEST_STORE_PAUSE)
}

fn members_to_ask(
    config: &Config,
    cluster: &ClusterConfig,
    view: &ClusterView,
    switch: Option<&SwitchState>,
    now: Time,
    wishes: &mut Vec<Wish>,
) {
    let mut pauses: BTreeMap<&str, (Duration, &str)> = BTreeMap::new();
    let topology = &view.topology;
    // Many agents ask one Patroni.
    let live = match cluster.truth {
        Truth::Store => {
            let live = switch.map_or(0, |state| state.view.peers.poolers.len());
            u32::try_from(live).unwrap_or(u32::MAX)
        }
        Truth::Members { pollers } => pollers,
    };
    let crowd = (live / 2).clamp(1, CROWD);
    let hold = switch.and_then(|state| state.hold.as_ref());
    let routed = config.routes_into(&cluster.name).any(|r| r.is_write() || r.to == RouteTo::Any);
    let has_lag_limit = config.routes_into(&cluster.name).any(|r| r.max_lag.is_some());
    if has_lag_limit {
        for name in topology.members.keys() {
            pauses.insert(name, (MEMBER_PAUSE, "a route limits the lag"));
        }
    }
    if asks_everybody(cluster, view, now) {
        for name in topology.members.keys() {
            pauses.insert(name, (MEMBER_PAUSE, "the store is silent: its word may have to stand in"));
        }
        ask_hosts(cluster, view, wishes);
    }
    let keyless = view.former_member.as_ref().filter(|_| topology.leader.is_none());
    if let Some(former) = keyless {
        pauses.insert(&former.name, (MEMBER_PAUSE, "it led: does it go on without its key?"));
    }
    for suspect in view.suspects() {
        pauses.insert(&suspect.name, (MEMBER_PAUSE, "it says that it is primary, but does not lead"));
    }
    if let Some(leader) = topology.leader_member().filter(|_| !topology.config.standby_cluster) {
        let writable = view.asked.get(&leader.name).and_then(|f| f.last()).is_some_and(|s| s.is_writable());
        let was_writable = writable || view.was_writable;
        let pause = match now.since(view.leader_since) {
            _ if was_writable && hold.is_some_and(|hold| hold.may_be_back()) => {
                (HELD_PAUSE * crowd).min(MEMBER_PAUSE)
            }
            _ if writable || !routed => MEMBER_PAUSE,
            _ if was_writable => PATIENT_PAUSE,
            age if age < PROMOTION_PATIENCE => {
                let pause = if has_agent(switch, &leader.name) { SPOKEN_PAUSE } else { PROMOTION_PAUSE };
                (pause * crowd).min(PATIENT_PAUSE)
            }
            _ => PATIENT_PAUSE,
        };
        pauses.insert(&leader.name, (pause, "it leads: is it writable?"));
    }
    let members = topology.members.values();
    let candidates = view.candidate.iter().flat_map(|c| c.topology.members.values());
    for candidate in candidates.clone() {
        pauses
            .entry(&candidate.name)
            .or_insert((MEMBER_PAUSE, "its word decides whether a strange store is followed"));
    }
    // A member that is known is asked where it is known to be.
    for member in members.chain(candidates).chain(keyless) {
        let (Some((pause, why)), Some(url)) = (pauses.remove(member.name.as_str()), &member.api_url) else {
            continue;
        };
        wishes.push(Wish {
            question: Question::Member(cluster.name.clone(), member.name.clone()),
            pause,
            order: Order::AskMember {
                cluster: cluster.name.clone(),
                member: member.name.clone(),
                url: api_base(url).to_string(),
            },
            reason: Reason::new(Rule::WritableLeader, format!("{}: {why}", member.name)),
        });
    }
}

/// Whether the members' word may soon have to stand in for the store.
fn asks_everybody(cluster: &ClusterConfig, view: &ClusterView, now: Time) -> bool {
    let silent = |seen: Time| {
        let age = now.since(seen);
        view.failed.is_some() || view.topology.leader.is_none() || age > cluster.max_fact_age / 2
    };
    cluster.has_store() && cluster.on_dcs_loss != OnDcsLoss::FailClosed && view.seen.is_some_and(silent)
}

/// Addresses of the configuration by which members may be reached when their own are not.
fn ask_hosts(cluster: &ClusterConfig, view: &ClusterView, wishes: &mut Vec<Wish>) {
    let members = view.topology.members.values().filter_map(|member| member.api_url.as_deref());
    let known: Vec<&str> = members.map(api_base).collect();
    for host in cluster.patroni_hosts.iter().filter(|host| !known.contains(&api_base(host))) {
        wishes.push(Wish {
            question: Question::Member(cluster.name.clone(), host.clone()),
            pause: MEMBER_PAUSE,
            order: Order::AskMember {
                cluster: cluster.name.clone(),
                member: host.clone(),
                url: api_base(host).to_string(),
            },
            reason: Reason::new(Rule::StoreAway, format!("{host}: the store is silent")),
        });
    }
}

/// Whether an agent beside this member has been heard.
fn has_agent(switch: Option<&SwitchState>, member: &str) -> bool {
    let Some(peers) = switch.map(|state| &state.view.peers) else { return false };
    peers.fence.as_ref().is_some_and(|fence| fence.member == member)
        || peers.poolers.values().any(|word| word.member.as_deref() == Some(member))
}

/// A waiting hook has to know at once what Patroni is about to do.
fn local_patroni_pause(switch: Option<&SwitchState>) -> Duration {
    match switch.and_then(|state| state.stop.as_ref()).map(|stop| &stop.step) {
        Some(Step::Checking) => HOOK_PAUSE,
        Some(Step::Over { .. }) => PATIENT_PAUSE,
        _ => MEMBER_PAUSE,
    }
}

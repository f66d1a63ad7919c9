//! Patroni's synchronous hooks: small processes that ask the agent of their host, and wait no longer than they may.

use crate::patroni::Step;
use crate::world::{Thing, World};
use pgsquire_core::config::Fence;
use pgsquire_core::effect::HookAnswer;
use pgsquire_core::event::{Event, HookId, HookKind};
use pgsquire_core::time::Time;
use std::time::Duration;

/// The first answer comes within this, or the hook returns.
const FIRST_ANSWER: Duration = Duration::from_millis(100);
/// What a hook may need on top of the time-outs of the protocol.
const SLACK: Duration = Duration::from_millis(400);

/// A hook that runs.
#[derive(Debug, Clone)]
pub struct Hook {
    kind: HookKind,
    host: usize,
    run: u64,
    member: (usize, usize),
    life: u64,
    asked: Time,
    /// It returns then by itself.
    until: Time,
}

impl World {
    fn strict(&self) -> bool {
        self.setup.fence == Fence::Strict
    }

    /// Patroni runs a hook; `Step::Hooked` follows.
    pub fn run_hook(&mut self, c: usize, m: usize, kind: HookKind) {
        let life = self.clusters[c].members[m].patroni.life;
        let no_hook = kind == HookKind::BeforeStop && self.clusters[c].old_patroni;
        let host = self.hosts.iter().position(|host| host.local == Some((c, m)));
        let alive = |h: &usize| self.hosts[*h].agent.is_some();
        let Some(h) = host.filter(alive).filter(|_| !no_hook) else {
            let go_on = no_hook || host.is_none() || kind == HookKind::BeforeStop || !self.strict();
            let after = self.rng.millis(1, 5);
            return self.later(after, Thing::Member(c, m, life, Step::Hooked { kind, go_on }));
        };
        self.hooked += 1;
        let (id, run, until) = (self.hooked, self.hosts[h].run, self.now + FIRST_ANSWER);
        let hook = Hook { kind, host: h, run, member: (c, m), life, asked: self.now, until };
        self.say(|w| format!("{}: {kind:?} asks (hook {id})", w.hosts[h].name));
        self.hooks.insert(id, hook);
        let wall = self.now.as_micros() / 1_000_000;
        let event = Event::HookAsked { hook: HookId(id), kind, wall };
        self.later(Duration::from_millis(1), Thing::Tell(h, run, vec![event]));
        self.at(until, Thing::Hook(id, None));
    }

    /// A hook is answered, or its time may be over.
    pub fn hook_step(&mut self, id: u64, answer: Option<HookAnswer>) {
        let Some(hook) = self.hooks.get_mut(&id) else { return };
        match answer {
            Some(HookAnswer::Wait { at_most_ms, .. }) => {
                hook.until = self.now + Duration::from_millis(at_most_ms) + Duration::from_millis(50);
                let until = hook.until;
                self.at(until, Thing::Hook(id, None));
            }
            Some(HookAnswer::Return { go_on, .. }) => self.hook_over(id, go_on, true),
            None if self.now >= hook.until => {
                let go_on = hook.kind == HookKind::BeforeStop || !self.strict();
                self.hook_over(id, go_on, false);
            }
            None => {}
        }
    }

    fn hook_over(&mut self, id: u64, go_on: bool, told: bool) {
        let Some(hook) = self.hooks.remove(&id) else { return };
        let waited = self.now.since(hook.asked);
        let switch = &self.hosts[hook.host].config.switch;
        let bound = match hook.kind {
            HookKind::BeforeStop => switch.drain_timeout,
            HookKind::PrePromote => switch.fence_timeout,
        };
        if waited > bound + SLACK {
            self.broken("H1", format!("{:?} waited {waited:?}", hook.kind));
        }
        self.say(|w| format!("{}: hook {id} returns after {waited:?}: {go_on}", w.hosts[hook.host].name));
        if !told {
            self.lose_hook(id, &hook);
        }
        let (c, m) = hook.member;
        let step = Step::Hooked { kind: hook.kind, go_on };
        self.later(Duration::from_millis(1), Thing::Member(c, m, hook.life, step));
    }

    fn lose_hook(&mut self, id: u64, hook: &Hook) {
        let event = Event::HookLost { hook: HookId(id) };
        self.later(Duration::from_millis(2), Thing::Tell(hook.host, hook.run, vec![event]));
    }

    /// Patroni changes its mind, or is killed: its hooks are killed.
    pub fn kill_hooks(&mut self, c: usize, m: usize) {
        let mine: Vec<u64> =
            self.hooks.iter().filter(|(_, hook)| hook.member == (c, m)).map(|(id, _)| *id).collect();
        for id in mine {
            let Some(hook) = self.hooks.remove(&id) else { continue };
            self.say(|w| format!("{}: hook {id} is killed", w.hosts[hook.host].name));
            self.lose_hook(id, &hook);
        }
    }

    /// Whether a hook of a member runs.
    pub fn is_hooked(&self, c: usize, m: usize) -> bool {
        self.hooks.values().any(|hook| hook.member == (c, m))
    }

    /// The agent is gone: the hooks that wait for it see their connection end.
    pub fn orphan_hooks(&mut self, h: usize) {
        let mine: Vec<(u64, HookKind)> =
            self.hooks.iter().filter(|(_, hook)| hook.host == h).map(|(id, hook)| (*id, hook.kind)).collect();
        for (id, kind) in mine {
            let go_on = kind == HookKind::BeforeStop || !self.strict();
            let answer = HookAnswer::Return { go_on, why: "the agent is gone".into() };
            self.later(Duration::from_millis(2), Thing::Hook(id, Some(answer)));
        }
    }
}

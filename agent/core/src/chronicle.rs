//! What changed in this turn, for the flight recorder.

use crate::agent::Agent;
use crate::desired::Decision;
use crate::leader::writable_leader;
use crate::pgbouncer::pools::Pooler;
use crate::recorder::Recorder;
use crate::time::Time;
use alloc::format;
use alloc::string::ToString;

impl Agent {
    pub(crate) fn note_changes(&mut self) {
        let now = self.now;
        for cluster in &self.config.clusters {
            let view = &self.observed.clusters[&cluster.name];
            let leader = view.topology.leader.as_ref().map_or("nobody", |l| l.name.as_str());
            let text = format!("{leader} holds the leader key");
            self.recorder.say_change(now, "leader", &cluster.name, leader, "nobody", &text);
            let (key, text) = match writable_leader(&self.config, cluster, &self.observed, now) {
                Ok(l) => (
                    format!("{} {}", l.name, l.timeline),
                    format!("{} is writable on timeline {}: {}", l.name, l.timeline, l.proof),
                ),
                Err(reason) => (reason.rule.word().to_string(), reason.text),
            };
            self.recorder.say_change(now, "writable", &cluster.name, &key, "", &text);
            let refused = view.candidate.as_ref().map_or("", |c| c.reason.rule.word());
            let text = view
                .candidate
                .as_ref()
                .map_or("the store's answers are followed".into(), |c| c.reason.to_string());
            self.recorder.say_change(now, "store", &cluster.name, refused, "", &text);
        }
        for (name, decisions) in &self.desired.poolers {
            let Some(pooler) = self.poolers.get(name) else { continue };
            for (entry, decision) in decisions {
                note_route(&mut self.recorder, now, &format!("{name}/{entry}"), entry, pooler, decision);
            }
        }
    }
}

fn note_route(
    recorder: &mut Recorder,
    now: Time,
    subject: &str,
    entry: &str,
    pooler: &Pooler,
    decision: &Decision,
) {
    let (key, text) = match &decision.target {
        Some(t) => (t.endpoint.to_string(), format!("must lead to {}: {}", t.endpoint, decision.reason.text)),
        None => {
            (format!("hold {}", decision.reason.rule), format!("stays where it is: {}", decision.reason.text))
        }
    };
    recorder.say_change(now, "route", subject, &key, "", &text);
    let verified = pooler.is_verified(entry, decision, now);
    let key = if verified { key } else { "unverified".to_string() };
    let text = match (&decision.target, verified) {
        (Some(target), true) => {
            format!("leads to {}: file, loaded entry and server links agree", target.endpoint)
        }
        _ => "is not verified".to_string(),
    };
    recorder.say_change(now, "verified", subject, &key, "unverified", &text);
}

//! The longest pause after kill -9 of anyone who takes part in a switchover, and who does not come back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::own_spec;
use super::table::{Figure, Row};
use super::{OWN, milliseconds, own_loads};
use crate::faults::Part;
use crate::lab::Lab;
use crate::load::{Load, LoadSpec};
use crate::progress::Progress;
use crate::report::human;
use crate::spec::{Spec, Switch};
use crate::state::Component;
use crate::step::{Step, Steps};

const LIMIT: Duration = Duration::from_secs(120);
const CLIENTS: usize = 10;

/// Whose agent dies.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Coordinator,
    Pooler,
}

/// With settings so short that a pause nobody ends is over soon.
pub(super) fn spec(agent: PathBuf) -> Spec {
    let spec = own_spec(agent);
    let poolers = spec.poolers.into_iter().map(|pooler| pooler.login_retry(1)).collect();
    Spec { switch: Switch::short(), poolers, ..spec }
}

/// Kills one after the other at each step from the record on.
pub(super) async fn rows(lab: &mut Lab, progress: &Progress) -> Result<Vec<Row>> {
    let loads = own_loads(lab, CLIENTS).await?;
    let mut askers = Vec::new();
    for name in OWN {
        askers.push(Load::start(LoadSpec::asker(lab.pooler_address(name)?)).await?);
    }
    let mut pauses = Vec::new();
    for step in [Step::Draining, Step::Drained, Step::Stopping, Step::Promoted] {
        for victim in [Victim::Coordinator, Victim::Pooler] {
            let host = match victim {
                Victim::Coordinator => lab.leader().await?,
                Victim::Pooler => OWN[0].to_string(),
            };
            let from = Instant::now();
            let mut steps = Steps::watch(lab).await?;
            let ordered = lab.order_switchover().await?;
            steps.reach(step, None, LIMIT).await?;
            lab.kill(&host, Part::Agent).await?;
            // It may well not happen: that is the fault's business.
            let _ = ordered.await;
            lab.wait_healthy(LIMIT).await?;
            // Without its agent a pooler may go on leading to the old primary: an error is an answer, too.
            let since = Instant::now();
            for asker in &askers {
                asker
                    .wait_answered(since, LIMIT)
                    .await
                    .with_context(|| format!("{host} died at {step:?}"))?;
            }
            let pause =
                askers.iter().map(|l| l.report(from, Instant::now()).silence).max().unwrap_or_default();
            progress
                .step(&format!("kill -9 of the agent on {host} at {step:?}: longest pause {}", human(pause)));
            pauses.push(milliseconds(pause));
            lab.start(&host, Component::Agent)?;
            lab.wait_agent(&host).await?;
            let healed = Instant::now();
            for (_, load) in &loads {
                load.wait_all_committed(healed, None, LIMIT).await.context("clients after the fault")?;
            }
        }
    }
    let bound = milliseconds(lab.state().spec.switch.longest_pause());
    let what = format!("longest pause after kill -9 of an agent that stays away, {} kills", pauses.len());
    Ok(vec![Row::new(what, "ms", Figure::Value(Figure::of(&pauses).maximum()), Some(bound))])
}

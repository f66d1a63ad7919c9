//! From the write of the leader key to the decision of an agent.

use crate::agent::{Agent, Source};
use crate::patronis::name;
use crate::servers::Servers;
use crate::timing::{Limit, milliseconds, rows as rows_of};
use anyhow::Result;
use pgsquire_lab::Progress;
use pgsquire_lab::bench::{Figure, Row};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two changes: the agent reads the whole cluster after each, and that is not measured.
const PACE: Duration = Duration::from_millis(50);
/// Changes between two words about them.
const STEP: u32 = 50;

/// So many changes of the leader, in a store with one server.
pub async fn rows<S: Servers>(writes: u32, progress: &Progress) -> Result<Vec<Row>> {
    progress.step(&format!("{}: one server, one agent", S::NAME));
    let mut servers = S::start(1).await?;
    let mut agent = Agent::start("pool", Source::Store(servers.store()));
    servers.lead(&name(0)).await?;
    agent.knows(&name(0)).await?;
    let (mut decided, mut answered) = (Vec::new(), Vec::new());
    for turn in 1..=writes {
        sleep(PACE).await;
        let leader = name(turn as usize);
        let began = Instant::now();
        servers.lead(&leader).await?;
        answered.push(milliseconds(began.elapsed()));
        decided.push(milliseconds(agent.knows(&leader).await?.saturating_duration_since(began)));
        if turn % STEP == 0 {
            progress.step(&format!("{}: {turn} of {writes} writes of the leader key", S::NAME));
        }
    }
    agent.stop().await;
    let what = format!("{}: leader key written -> agent's decision, {writes} writes", S::NAME);
    let [all, worst] = rows_of(&what, &decided, Limit::Percentile99(S::LIMIT));
    let all = all.beside("the writer has its answer", Figure::of(&answered));
    let worst = worst.beside("the writer has its answer", Figure::Value(Figure::percentile(&answered, 99)));
    Ok(vec![all, worst])
}

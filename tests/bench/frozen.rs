//! The server that is followed stands still (SIGSTOP): its connections stay open and nothing comes any more. How long does
//! an agent miss what is written through another one?

use crate::agent::{Agent, Source};
use crate::patronis::name;
use crate::servers::Servers;
use crate::timing::{Limit, milliseconds, rows as rows_of};
use anyhow::Result;
use nix::sys::signal::Signal;
use pgsquire_lab::Progress;
use pgsquire_lab::bench::Row;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// In ms.
const LIMIT: f64 = 6000.0;
/// An agent follows for so long before the first one is frozen, and for so much longer in each round: it asks by itself
/// every few seconds, and each round meets it elsewhere in between.
const FOLLOWS: (Duration, Duration) = (Duration::from_millis(1000), Duration::from_millis(700));

/// So many rounds, each with servers and an agent of its own: one that was frozen once is not the first to be followed.
pub async fn rows<S: Servers>(rounds: u32, progress: &Progress) -> Result<Vec<Row>> {
    let mut times = Vec::new();
    for round in 0..rounds {
        progress.step(&format!("{}: {} servers", S::NAME, S::SEVERAL));
        let mut servers = S::start(S::SEVERAL).await?;
        servers.lead(&name(0)).await?;
        let mut agent = Agent::start("pool", Source::Store(servers.store()));
        agent.knows(&name(0)).await?;
        sleep(FOLLOWS.0 + FOLLOWS.1 * round).await;
        let began = Instant::now();
        servers.signal_followed(Signal::SIGSTOP);
        servers.lead(&name(1)).await?;
        let took = milliseconds(agent.knows(&name(1)).await?.saturating_duration_since(began));
        servers.signal_followed(Signal::SIGCONT);
        agent.stop().await;
        progress.step(&format!("{}: noticed after {took:.0} ms, {} of {rounds}", S::NAME, round + 1));
        times.push(took);
    }
    let what = format!("{}: frozen server -> decision by another one, {rounds} rounds", S::NAME);
    Ok(rows_of(&what, &times, Limit::Maximum(LIMIT)).into())
}

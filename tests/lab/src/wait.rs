//! Waiting for facts: every wait has a deadline and asks again at short, regular times.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, MissedTickBehavior, interval};

const STEP: Duration = Duration::from_millis(20);

/// Asks until the answer is yes; false when `limit` is over first.
pub async fn until(limit: Duration, mut fact: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    let mut ticks = interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if fact() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
    }
}

/// Asks every `step` until there is an answer. What the last question said stands in the error when `limit` is over.
pub async fn answer<T, F, Fut>(what: &str, limit: Duration, step: Duration, mut ask: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let end = Instant::now() + limit;
    let mut ticks = interval(step);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let last = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(e) => e,
        };
        if Instant::now() >= end {
            bail!("{what}: not within {} s: {last:#}", limit.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_holds_the_last_answer() {
        let result: Result<()> =
            answer("leader", Duration::from_millis(50), STEP, || async { bail!("nobody leads") }).await;
        let text = format!("{:#}", result.expect_err("time is over"));
        assert!(text.contains("leader") && text.contains("nobody leads"), "{text}");
    }
}

//! Clients on several poolers at once, and what the tests of a switch ask of them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pgsquire_lab::{Load, LoadSpec, Report};

use crate::ledger;
use crate::site::{PATIENCE, Site, value};

/// A client waits so long after an error: the promise of one error at most is for those.
pub const WAIT: Duration = Duration::from_millis(50);

/// Writing clients on some poolers, and one on each that shows whether it answers at all.
pub struct Clients {
    loads: Vec<Load>,
    askers: Vec<Load>,
    poolers: Vec<String>,
    start: Instant,
}

impl Clients {
    /// So many on each of these poolers.
    pub async fn start(site: &Site, poolers: &[&str], each: usize) -> Result<Self> {
        Self::changed(site, poolers, each, |spec| spec).await
    }

    /// The same, with a change to what they do.
    pub async fn changed(
        site: &Site,
        poolers: &[&str],
        each: usize,
        change: impl Fn(LoadSpec) -> LoadSpec,
    ) -> Result<Self> {
        let start = Instant::now();
        let (mut loads, mut askers) = (Vec::new(), Vec::new());
        for (number, pooler) in poolers.iter().enumerate() {
            let address = site.pooler_address(pooler)?;
            let spec = LoadSpec {
                first: number * 1000,
                // All of them together leave something of the machine to the others.
                pause: Duration::from_millis(40),
                reconnect_pause: WAIT,
                ..LoadSpec::writes(address, each)
            };
            loads.push(Load::start(change(spec)).await?);
            askers.push(Load::start(LoadSpec::asker(address)).await?);
        }
        site.step(&format!("{each} clients write through each of {}", poolers.join(", ")));
        Ok(Self { loads, askers, poolers: poolers.iter().map(|p| p.to_string()).collect(), start })
    }

    fn reports(&self, since: Instant) -> Vec<Report> {
        self.loads.iter().map(|l| l.report(since, Instant::now())).collect()
    }

    /// What the writing clients of each pooler saw go wrong, for people.
    pub fn errors(&self, since: Instant) -> String {
        let of = |(pooler, report): (&String, Report)| {
            let (all, clients) = (report.errors, report.clients_with_errors);
            format!("{pooler}: {all} errors of {clients} clients {:?}", report.error_texts)
        };
        self.poolers.iter().zip(self.reports(since)).map(of).collect::<Vec<_>>().join("; ")
    }

    /// Fails if a writing client saw an error.
    pub fn saw_nothing(&self, since: Instant) -> Result<()> {
        ensure!(self.reports(since).iter().all(|r| r.errors == 0), "{}", self.errors(since));
        Ok(())
    }

    /// Fails if a writing client saw more than one error.
    pub fn saw_one_error_at_most(&self, since: Instant) -> Result<()> {
        let fine = |r: &Report| r.most_errors_of_a_client <= 1;
        ensure!(self.reports(since).iter().all(fine), "more than one: {}", self.errors(since));
        Ok(())
    }

    /// Waits until every pooler has answered its asker from now on, be it with an error; says the longest time for which
    /// one did not since then: a pause is not longer.
    pub async fn answered(&self, since: Instant) -> Result<Duration> {
        let now = Instant::now();
        for (asker, pooler) in self.askers.iter().zip(&self.poolers) {
            let answered = asker.wait_answered(now, PATIENCE).await;
            answered.map_err(|e| e.context(format!("{pooler} answers nobody: it may be paused")))?;
        }
        let silences = self.askers.iter().map(|a| a.report(since, Instant::now()).silence);
        Ok(silences.max().unwrap_or_default())
    }

    /// Waits until every client has committed on the leader; then no pooler is paused, as its console and its clients say.
    pub async fn served(&self, site: &Site, leader: &str) -> Result<()> {
        let server = Some(site.address(leader)?);
        let now = Instant::now();
        for load in &self.loads {
            load.wait_all_committed(now, server, PATIENCE).await?;
        }
        self.answered(now).await?;
        for pooler in &self.poolers {
            for row in site.console(pooler, "SHOW DATABASES").await? {
                ensure!(value(&row, "paused") != "1", "{} of {pooler} is left paused", value(&row, "name"));
            }
        }
        Ok(())
    }

    /// Every row that was acknowledged since the beginning is there once, each timeline is of one server; says how many
    /// commits were acknowledged by an old server after a new one had begun.
    pub async fn book(&self, site: &Site, leader: &str) -> Result<usize> {
        let told = ledger::told(&self.loads, self.start);
        let rows = ledger::all_there(site, leader, &told).await?;
        ledger::one_server_for_each_timeline(&told)?;
        let late = ledger::late(&told);
        site.step(&format!(
            "all {rows} acknowledged rows are there, {late} on an old server after a new one had begun"
        ));
        Ok(late)
    }
}

//! The same with the oldest Patroni and a newer PgBouncer.

use std::time::Instant;

use anyhow::Result;
use pgsquire_lab::{Load, LoadSpec, PATRONI_OLD, PgBouncerBuild, Spec};

use crate::follow::follow;
use crate::kill::{postgres_killed, primary_killed};
use crate::site::{Site, spec, with, write_and_read};

const CLIENTS: usize = 10;

/// Clients whose rows are not those of the clients that were there before.
async fn others(site: &Site) -> Result<Load> {
    Load::start(LoadSpec { first: 100, ..LoadSpec::writes(site.pooler_address("write")?, CLIENTS) }).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn the_oldest_patroni() -> Result<()> {
    let spec = Spec { patroni: PATRONI_OLD.into(), ..spec() };
    with(write_and_read(spec), async |site| {
        follow(site, 3, "master").await?;
        let start = Instant::now();
        let load = others(site).await?;
        postgres_killed(site, &load, start).await?;
        primary_killed(site, &load).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn pgbouncer_of_debian_13() -> Result<()> {
    let spec = Spec { pgbouncer: PgBouncerBuild::Debian13, ..spec() };
    with(write_and_read(spec), async |site| {
        follow(site, 3, "primary").await?;
        let load = others(site).await?;
        primary_killed(site, &load).await
    })
    .await
}

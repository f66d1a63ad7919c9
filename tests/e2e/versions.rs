//! The same with the oldest Patroni and a newer PgBouncer.

use std::time::Instant;

use anyhow::Result;
use pgsquire_lab::{PATRONI_OLD, PgBouncerBuild, Spec};

use crate::follow::follow;
use crate::kill::{postgres_killed, primary_killed};
use crate::site::{spec, with, write_and_read};

const CLIENTS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn the_oldest_patroni() -> Result<()> {
    let spec = Spec { patroni: PATRONI_OLD.into(), ..spec() };
    with(write_and_read(spec), async |site| {
        follow(site, 3, "master").await?;
        let start = Instant::now();
        let load = site.load("write", CLIENTS).await?;
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
        let load = site.load("write", CLIENTS).await?;
        primary_killed(site, &load).await
    })
    .await
}

//! The agent on real clusters: etcd, Patroni, PostgreSQL, PgBouncer and clients, all brought up by the lab.

mod follow;
mod quickstart;

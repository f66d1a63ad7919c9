//! The agent on real clusters: etcd (in `stores` the others), Patroni, PostgreSQL, PgBouncer and clients, all brought up by the lab.
//!
//! Each test has a lab of its own and waits for facts, each with a deadline. The tests that are ignored by default are
//! the matrix: `make test-matrix`.

mod agent_faults;
mod bad_input;
mod clients;
mod follow;
mod ini;
mod kill;
mod ledger;
mod observe;
mod outage;
mod partition;
mod quickstart;
mod routes;
mod site;
mod stale;
mod stores;
mod switch;
mod switch_faults;
mod switch_loss;
mod switch_modes;
mod versions;

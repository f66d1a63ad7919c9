//! Contract tests: what we believe about a neighbour, asked of the neighbour itself. One module per
//! neighbour.

mod certificates;
mod consul;
mod consul_server;
mod etcd;
mod patroni_rest;
mod patroni_server;
mod patroni_yml;
mod pgbouncer_console;
mod pgbouncer_ini;
mod pgbouncer_pause;
mod pgbouncer_release;
mod pooler;
mod postgres;
mod probe;
mod processes;
mod publish;
mod rest_only;
mod server;
mod worker;

//! Contract tests: what we believe about a neighbour, asked of the neighbour itself. One module per
//! neighbour.

mod certificates;
mod consul;
mod consul_keys;
mod consul_server;
mod etcd;
mod etcd_keys;
mod etcd_server;
mod patroni_rest;
mod patroni_yml;
mod pgbouncer_console;
mod pgbouncer_ini;
mod pgbouncer_pause;
mod pgbouncer_release;
mod pooler;
mod postgres;
mod probe;
mod processes;
mod server;
mod store;
mod worker;
mod zookeeper;
mod zookeeper_keys;
mod zookeeper_server;

//! The binary as an operator, Patroni, a load balancer and a hostile neighbour meet it.

mod callback;
mod commands;
mod config_errors;
mod control;
mod hook;
mod host;
mod http;
mod release;
mod render;
mod rest_only;

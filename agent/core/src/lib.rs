//! The decisions of pgsquire: facts come in, the one state this host should be in is planned, and the differences go
//! out as orders. There is no clock, no socket and no file here: the crate is `no_std`, so none would compile.
//!
//! Begin reading at [`agent`]; [`event`] and [`effect`] are the two protocols with the shell.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod agent;
mod answers;
pub mod calendar;
pub mod candidate;
mod chronicle;
pub mod config;
pub mod desired;
pub mod effect;
pub mod event;
#[cfg(test)]
mod example;
pub mod fact;
pub mod health;
pub mod leader;
pub mod observed;
pub mod outage;
pub mod patroni;
pub mod pgbouncer;
pub mod questions;
mod readers;
pub mod recorder;
pub mod rest;
pub mod rule;
pub mod snapshot;
pub mod status;
pub mod switch;
mod switching;
mod terms;
pub mod time;
pub mod topology;
pub mod wal;

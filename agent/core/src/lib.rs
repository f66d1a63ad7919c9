//! The decisions of pgsquire: facts come in, the one state this host should be in is planned, and the differences go
//! out as orders. There is no clock, no socket and no file here: the crate is `no_std`, so none would compile.
//!
//! Begin reading at [`agent`]; [`event`] and [`effect`] are the two protocols with the shell.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

<<<<<<< HEAD
pub mod config;
pub mod effect;
pub mod event;
pub mod patroni;
pub mod pgbouncer;
pub mod rule;
pub mod status;
pub mod time;
pub mod topology;
pub mod wal;
=======
pub mod pgbouncer;
>>>>>>> ini

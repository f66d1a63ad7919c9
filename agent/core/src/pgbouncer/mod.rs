//! PgBouncer, as far as it can be known without touching it.
//!
//! ```text
//!   pgbouncer.ini + included files          (bytes, read by the shell)
//!        │  document   one file  -> sections, %include lines, entries, each with its place
//!        │  connstr    the value of one [databases] entry -> parameters, each with its place
//!        ▼
//!   ini::Files         all files in PgBouncer's reading order
//!        ├─ problems() what PgBouncer would refuse, or what we refuse to build upon
//!        ├─ entries()  where each database leads
//!        ├─ setting()  the value of one [pgbouncer] parameter
//!        └─ retarget() the files' new bytes; nothing but `host` and `port` of routed entries differs
//! ```
//!
//! [`console`] is what its admin console says, [`pools`] what we know of one process, [`reconcile`] what is done next.

pub mod connstr;
pub mod console;
pub mod disk;
pub mod document;
pub mod ini;
mod last_good;
pub mod let_go;
mod links;
pub mod own_pause;
pub mod pause;
pub mod pools;
pub mod problem;
mod reading;
pub mod reconcile;
pub mod seen;

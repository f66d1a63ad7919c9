//! The shell of pgsquire.

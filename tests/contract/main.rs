//! Contract tests: what we believe about a neighbour, asked of the neighbour itself. One module per
//! neighbour.

mod pgbouncer_ini;

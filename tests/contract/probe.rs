//! The probe against real PostgreSQL servers.

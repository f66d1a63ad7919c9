//! The protocol between agents: a planned switch is announced, poolers drain and say so, and everybody ends by himself.
//!
//! [`records`] is what agents tell each other through the store.

pub mod records;

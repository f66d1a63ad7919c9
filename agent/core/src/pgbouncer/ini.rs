//! Placeholder until the lossless document lands.
#![allow(missing_docs)]
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    pub root: String,
    pub parts: BTreeMap<String, Vec<u8>>,
}

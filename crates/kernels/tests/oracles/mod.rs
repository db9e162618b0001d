//! Oracles of attention and of the operations on rows.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod attention;
pub mod vecops;

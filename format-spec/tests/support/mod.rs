//! What the format's tests share: a sample sector, a reader written from `SPEC.md`, vector files.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod reader;
pub mod sample;
pub mod vectors;

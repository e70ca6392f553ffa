//! Benches of the engine.

//! Helpers of the whole-store tests.

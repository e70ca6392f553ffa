#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| graviton_fuzz::run("checkpoint_root", data));

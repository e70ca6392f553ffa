#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| graviton_fuzz::run("superblock", data));

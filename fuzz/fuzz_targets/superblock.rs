#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("superblock"),
    |data: &[u8]| graviton_fuzz::run("superblock", data)
);

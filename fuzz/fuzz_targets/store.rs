#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("store"),
    |data: &[u8]| graviton_fuzz::run("store", data)
);

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("operations"),
    |data: &[u8]| graviton_fuzz::run("operations", data)
);

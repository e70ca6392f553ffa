#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("table"),
    |data: &[u8]| graviton_fuzz::run("table", data)
);

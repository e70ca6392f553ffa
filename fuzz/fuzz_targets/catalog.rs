#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("catalog"),
    |data: &[u8]| graviton_fuzz::run("catalog", data)
);

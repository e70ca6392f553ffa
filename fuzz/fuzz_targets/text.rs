#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("text"),
    |data: &[u8]| graviton_fuzz::run("text", data)
);

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("meta"),
    |data: &[u8]| graviton_fuzz::run("meta", data)
);

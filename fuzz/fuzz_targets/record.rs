#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("record"),
    |data: &[u8]| graviton_fuzz::run("record", data)
);

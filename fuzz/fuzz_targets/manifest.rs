#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("manifest"),
    |data: &[u8]| graviton_fuzz::run("manifest", data)
);

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("parts"),
    |data: &[u8]| graviton_fuzz::run("parts", data)
);

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("tracker"),
    |data: &[u8]| graviton_fuzz::run("tracker", data)
);

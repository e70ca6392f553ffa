#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("dump"),
    |data: &[u8]| graviton_fuzz::run("dump", data)
);

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("command"),
    |data: &[u8]| graviton_fuzz::run("command", data)
);

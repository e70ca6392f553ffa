#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("segment_header"),
    |data: &[u8]| graviton_fuzz::run("segment_header", data)
);

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("frame_header"),
    |data: &[u8]| graviton_fuzz::run("frame_header", data)
);

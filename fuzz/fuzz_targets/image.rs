#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("image"),
    |data: &[u8]| graviton_fuzz::run("image", data)
);

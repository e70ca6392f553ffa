#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("store_file_copy"),
    |data: &[u8]| graviton_fuzz::run("store_file_copy", data)
);

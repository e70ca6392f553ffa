#![no_main]

libfuzzer_sys::fuzz_target!(
    init: graviton_fuzz::prepare("checkpoint_root"),
    |data: &[u8]| graviton_fuzz::run("checkpoint_root", data)
);

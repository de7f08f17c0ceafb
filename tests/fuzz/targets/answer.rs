#![no_main]

use outboxd_fuzz::checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::answer(input));

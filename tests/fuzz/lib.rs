//! What must hold for every input; the same file is a module of the tests.

#[path = "../it/fuzz/checks.rs"]
pub mod checks;

//! The migrations are embedded by a macro, and cargo does not see a new file in their folder by itself.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}

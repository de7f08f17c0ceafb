pub(crate) fn all_are_seen(_: &str) -> bool {
    false
}
pub(crate) fn all_match_the_source() -> bool {
    true
}

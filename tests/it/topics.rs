//! Patterns mean the same in Rust, where events are routed, and in SQL, where they are shown.

use outboxd::topic::Pattern;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use crate::harness::Database;

#[tokio::test]
async fn a_pattern_selects_the_same_topics_in_rust_and_in_sql() {
    let database = Database::new().await;
    let session = database.session().await;
    let words = |words: &'static [&'static str]| proptest::collection::vec(select(words), 1..5);
    let (patterns, topics) = (words(&["a", "b", "outboxd", "*", "#"]), words(&["a", "b", "outboxd"]));
    let mut runner = TestRunner::deterministic();
    let mut selected = 0;
    for _ in 0..2_000 {
        let pattern = patterns.new_tree(&mut runner).unwrap().current().join(".");
        let topic = topics.new_tree(&mut runner).unwrap().current().join(".");
        let rust = pattern.parse::<Pattern>().unwrap().matches(&topic);
        let query = "SELECT ($2 || '.') ~ outbox.topic_regex(ARRAY[$1])";
        let sql: bool = session.client.query_one(query, &[&pattern, &topic]).await.unwrap().get(0);
        assert_eq!(rust, sql, "{pattern} and {topic}");
        selected += usize::from(sql);
    }
    assert!((200..1_800).contains(&selected), "{selected} of 2000");
}

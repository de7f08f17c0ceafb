//! The table refuses what would be impossible to deliver, and the name of the constraint says what is wrong.

use std::fmt::Write as _;

use expect_test::expect;

use crate::harness::{Database, text};

/// `SQLSTATE constraint` of a statement that must fail.
async fn refused(session: &outboxd::postgres::Session, statement: &str) -> String {
    let error = session.client.batch_execute(statement).await.expect_err(statement);
    let error = error.as_db_error().expect("PostgreSQL refused it");
    format!("{} {}", error.code().code(), error.constraint().unwrap_or(error.message()))
}

#[tokio::test]
async fn impossible_events_are_refused_by_a_constraint_whose_name_is_the_rule() {
    let database = Database::new().await;
    let session = database.session().await;
    // (column, value)
    let table = [
        ("topic", "''"),
        ("topic", "'user..registered'"),
        ("topic", "'.user'"),
        ("topic", "'user.'"),
        ("topic", "'user registered'"),
        ("topic", "'user.*'"),
        ("topic", "E'user\\n'"),
        ("topic", "'größe'"),
        ("topic", "repeat('a', 256)"),
        ("topic", "NULL"),
        ("key", "''"),
        ("key", "repeat('k', 513)"),
        ("key", "E'a\\tb'"),
        ("payload", "NULL"),
        ("payload", "to_jsonb((SELECT string_agg(md5(n::text), '') FROM generate_series(1, 600000) AS n))"),
        ("headers", "'[]'"),
        ("headers", "'\"text\"'"),
        ("headers", "'{\"retries\": 3}'"),
        ("headers", "'{\"nested\": {\"a\": \"b\"}}'"),
        ("headers", "'{\"null\": null}'"),
        ("headers", "NULL"),
        ("headers", "jsonb_build_object('h', repeat('h', 70000))"),
        ("dedup_key", "''"),
        ("dedup_key", "repeat('d', 513)"),
        ("due_at", "'infinity'"),
        ("due_at", "'-infinity'"),
        ("due_at", "'1969-12-31Z'"),
        ("due_at", "'9999-01-01Z'"),
        ("expires_at", "'infinity'"),
        ("expires_at", "'1969-12-31Z'"),
        ("created_at", "'infinity'"),
        ("id", "7"),
        ("priority", "40000"),
    ];
    let mut said = String::new();
    for (column, value) in table {
        let columns = [("topic", "'a'"), ("payload", "'{}'")].into_iter().filter(|(name, _)| *name != column);
        let (names, values): (Vec<_>, Vec<_>) = columns.chain([(column, value)]).unzip();
        let statement = format!("INSERT INTO outbox.event ({}) VALUES ({})", names.join(", "), values.join(", "));
        let _ = writeln!(said, "{column} = {value}: {}", refused(&session, &statement).await);
    }
    let relation = "INSERT INTO outbox.event (topic, payload, due_at, expires_at) VALUES ('a', '{}', now(), now())";
    let _ = writeln!(said, "expires_at = due_at: {}", refused(&session, relation).await);
    expect![[r#"
        topic = '': 23514 topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        topic = 'user..registered': 23514 topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        topic = '.user': 23514 topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        topic = 'user.': 23514 topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        topic = 'user registered': 23514 topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        topic = 'user.*': 23514 topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        topic = E'user\n': 23514 topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        topic = 'größe': 23514 topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        topic = repeat('a', 256): 23514 topic_is_at_most_255_bytes
        topic = NULL: 23502 null value in column "topic" of relation "event_p0" violates not-null constraint
        key = '': 23514 key_is_1_to_512_bytes_without_control_characters
        key = repeat('k', 513): 23514 key_is_1_to_512_bytes_without_control_characters
        key = E'a\tb': 23514 key_is_1_to_512_bytes_without_control_characters
        payload = NULL: 23502 null value in column "payload" of relation "event_p0" violates not-null constraint
        payload = to_jsonb((SELECT string_agg(md5(n::text), '') FROM generate_series(1, 600000) AS n)): 23514 payload_is_at_most_16_mebibytes
        headers = '[]': 23514 headers_are_an_object_of_strings
        headers = '"text"': 23514 headers_are_an_object_of_strings
        headers = '{"retries": 3}': 23514 headers_are_an_object_of_strings
        headers = '{"nested": {"a": "b"}}': 23514 headers_are_an_object_of_strings
        headers = '{"null": null}': 23514 headers_are_an_object_of_strings
        headers = NULL: 23502 null value in column "headers" of relation "event_p0" violates not-null constraint
        headers = jsonb_build_object('h', repeat('h', 70000)): 23514 headers_are_at_most_64_kibibytes
        dedup_key = '': 23514 dedup_key_is_1_to_512_bytes
        dedup_key = repeat('d', 513): 23514 dedup_key_is_1_to_512_bytes
        due_at = 'infinity': 23514 due_at_is_between_years_1970_and_9999
        due_at = '-infinity': 23514 due_at_is_between_years_1970_and_9999
        due_at = '1969-12-31Z': 23514 due_at_is_between_years_1970_and_9999
        due_at = '9999-01-01Z': 23514 due_at_is_between_years_1970_and_9999
        expires_at = 'infinity': 23514 expires_at_is_between_years_1970_and_9999
        expires_at = '1969-12-31Z': 23514 expires_at_is_between_years_1970_and_9999
        created_at = 'infinity': 23514 created_at_is_between_years_1970_and_9999
        id = 7: 428C9 cannot insert a non-DEFAULT value into column "id"
        priority = 40000: 22003 smallint out of range
        expires_at = due_at: 23514 expires_at_is_after_due_at
    "#]].assert_eq(&said);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "0");
}

#[tokio::test]
async fn what_is_allowed_at_the_limits_is_taken() {
    let database = Database::new().await;
    let session = database.session().await;
    let statement = "INSERT INTO outbox.event (topic, key, payload, headers, dedup_key, due_at, expires_at, priority) VALUES \
        (repeat('a', 255), repeat('k', 512), 'null', '{}', repeat('d', 512), '1970-01-01Z', '9998-12-31Z', -32768), \
        ('A-z_0:9.b', 'größe 😀 \"', '[1]', '{\"traceparent\": \"00\"}', ' ', '9998-12-30Z', '9998-12-31Z', 32767)";
    session.client.batch_execute(statement).await.unwrap();
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "2");
}

#[tokio::test]
async fn an_insert_that_repeats_a_dedup_key_is_refused_as_a_unique_violation() {
    let database = Database::new().await;
    let session = database.session().await;
    let insert = "INSERT INTO outbox.event (topic, payload, dedup_key) VALUES ('a', '{}', 'k')";
    session.client.batch_execute(insert).await.unwrap();
    let error = session.client.batch_execute(insert).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    let said = [
        Some(error.code().code()),
        Some(error.message()),
        error.detail(),
        error.hint(),
        error.schema(),
        error.table(),
        error.constraint(),
    ];
    expect![[r#"
        23505
        duplicate key value violates unique constraint "dedup_pkey"
        Key (topic, dedup_key)=(a, k) already exists.
        outbox.publish(...) returns the id of the first event instead.
        outbox
        dedup
        dedup_pkey
    "#]]
    .assert_eq(&(said.map(|part| part.unwrap_or("nothing")).join("\n") + "\n"));
    // Twice in one statement is a repeat, too; another topic is not.
    let twice = "INSERT INTO outbox.event (topic, payload, dedup_key) VALUES ('b', '{}', 'k'), ('b', '{}', 'k')";
    assert_eq!(refused(&session, twice).await, "23505 dedup_pkey");
    session.client.batch_execute(&insert.replace("'a'", "'b'")).await.unwrap();
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "2");
}

#[tokio::test]
async fn a_producer_needs_insert_on_the_table_and_nothing_else() {
    let database = Database::new().await;
    let session = database.session().await;
    let role = format!("producer_{}", database.name());
    let grants = format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA outbox TO {role}; GRANT INSERT ON outbox.event TO {role}; \
         SET ROLE {role}; INSERT INTO outbox.event (topic, payload) VALUES ('a', '{{}}'); \
         INSERT INTO outbox.event (topic, payload, dedup_key) VALUES ('a', '{{}}', 'k')"
    );
    session.client.batch_execute(&grants).await.unwrap();
    let repeat = "INSERT INTO outbox.event (topic, payload, dedup_key) VALUES ('a', '{}', 'k')";
    assert_eq!(refused(&session, repeat).await, "23505 dedup_pkey");
    assert_eq!(refused(&session, "SELECT FROM outbox.event").await, "42501 permission denied for table event");
    let cleanup = format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}");
    session.client.batch_execute(&cleanup).await.unwrap();
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "2");
}

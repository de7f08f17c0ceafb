//! Tables with names that the database stores.

use super::reader::{Field, Reader, Table};
use super::text::quote;

/// Handlers, flows and schedules, each.
const TABLES_MAX: usize = 500;

/// The tables in a table, each of which has a name that the database stores.
pub(super) fn named<T>(
    reader: &mut Reader<'_>,
    field: &Field<'_>,
    table: &Table<'_>,
    what: &str,
    read: impl Fn(&mut Reader<'_>, &Field<'_>) -> Option<T>,
) -> Vec<T> {
    let fields = reader.fields(table);
    if fields.len() > TABLES_MAX {
        let message = format!("{} {what}s are too many; write at most {TABLES_MAX}", fields.len());
        reader.refuse(field, message);
    }
    let mut all = Vec::with_capacity(fields.len());
    for field in &fields {
        if !is_name(field.name) {
            let rule = "write 1 to 63 letters, digits, `_` and `-`";
            let article = if what.starts_with('a') { "an" } else { "a" };
            reader.refuse(field, format!("{} is not the name of {article} {what}; {rule}", quote(field.name)));
        }
        all.extend(read(reader, field));
    }
    all
}

fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

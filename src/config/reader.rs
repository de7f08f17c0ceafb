//! Typed access to a TOML document. Every accessor reports what is wrong and returns `None`, so its caller goes on with
//! the default and finds the next error.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::duration;
use super::error::Error;
use super::expand::{Env, expand};
use super::syntax::Damage;
use super::text::{Lines, join, quote};

/// How many of something there may be, if nothing else is said.
const COUNT: RangeInclusive<u32> = 1..=1000;

/// Collects the errors of one document.
pub(super) struct Reader<'a> {
    lines: Lines<'a>,
    damage: Damage,
    env: Env<'a>,
    errors: Vec<Error>,
}

/// A key and its value.
#[derive(Clone)]
pub(super) struct Field<'t> {
    /// The key alone.
    pub(super) name: &'t str,
    /// The key with its table's path.
    pub(super) path: String,
    line: usize,
    value: &'t DeValue<'t>,
}

/// A table whose keys are read one by one.
pub(super) struct Table<'t> {
    pub(super) path: String,
    line: usize,
    entries: &'t DeTable<'t>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lines: Lines<'a>, damage: Damage, env: Env<'a>) -> Self {
        Self { lines, damage, env, errors: Vec::new() }
    }

    pub(super) fn into_errors(self) -> Vec<Error> {
        self.errors
    }

    /// Reports a field. What a syntax error left behind is not reported again, nor shown: it may be half a secret.
    pub(super) fn refuse(&mut self, field: &Field<'_>, message: impl Into<String>) {
        self.error(field.line, &field.path, message.into());
    }

    /// Reports a table that lacks something, unless a syntax error may have hidden it.
    pub(super) fn lacks(&mut self, table: &Table<'_>, message: impl Into<String>) {
        if !self.damage.may_lack_keys(&self.lines, table.line) {
            self.error(table.line, &table.path, message.into());
        }
    }

    fn error(&mut self, line: usize, key: &str, message: String) {
        if !self.damage.has_line(&self.lines, line) {
            self.errors.push(Error { line, key: key.to_owned(), message });
        }
    }

    pub(super) fn root<'t>(entries: &'t DeTable<'t>) -> Table<'t> {
        Table { path: String::new(), line: 1, entries }
    }

    /// Every entry of a table.
    pub(super) fn fields<'t>(&self, table: &Table<'t>) -> Vec<Field<'t>> {
        table.entries.iter().map(|(key, value)| self.entry(table, key, value)).collect()
    }

    /// One entry of a table, if it is there.
    pub(super) fn field<'t>(&self, table: &Table<'t>, name: &str) -> Option<Field<'t>> {
        let (key, value) = table.entries.get_key_value(name)?;
        Some(self.entry(table, key, value))
    }

    fn entry<'t>(
        &self,
        table: &Table<'t>,
        key: &'t Spanned<DeString<'t>>,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Field<'t> {
        let line = self.lines.number(key.span().start);
        Field { name: key.get_ref(), path: join(&table.path, key.get_ref()), line, value: value.get_ref() }
    }

    /// Reports the keys of a table that mean nothing.
    pub(super) fn know(&mut self, table: &Table<'_>, known: &[&str]) {
        for field in self.fields(table) {
            if !known.contains(&field.name) {
                let hint =
                    closest(field.name, known).map(|key| format!(" (did you mean `{key}`?)")).unwrap_or_default();
                self.refuse(&field, format!("this key is unknown{hint}; known here: {}", known.join(", ")));
            }
        }
    }

    /// What is there instead of a table is not shown: `http = "https://user:password@host"` is a likely mistake.
    pub(super) fn table<'t>(&mut self, field: &Field<'t>, rule: &str) -> Option<Table<'t>> {
        match field.value {
            DeValue::Table(entries) => Some(Table { path: field.path.clone(), line: field.line, entries }),
            _ => self.mistyped_secret(field, rule),
        }
    }

    pub(super) fn string<'t>(&mut self, field: &Field<'t>, rule: &str) -> Option<&'t str> {
        match field.value {
            DeValue::String(text) => Some(text),
            _ => self.mistyped(field, rule),
        }
    }

    /// The strings of an array; each is a field, so that it is reported at its own line. Items that are no strings are
    /// reported and left out.
    pub(super) fn strings<'t>(&mut self, field: &Field<'t>, rule: &str) -> Option<Vec<(Field<'t>, &'t str)>> {
        let DeValue::Array(items) = field.value else { return self.mistyped(field, rule) };
        let strings: Vec<_> = self
            .items(field, items)
            .into_iter()
            .filter_map(|item| self.string(&item, rule).map(|text| (item, text)))
            .collect();
        (items.is_empty() || !strings.is_empty()).then_some(strings)
    }

    /// The items of an array, or the value that stands there instead of one. Each may be a secret.
    pub(super) fn one_or_many<'t>(&self, field: &Field<'t>) -> Vec<Field<'t>> {
        match field.value {
            DeValue::Array(items) => self.items(field, items),
            _ => vec![field.clone()],
        }
    }

    fn items<'t>(&self, field: &Field<'t>, items: &'t DeArray<'t>) -> Vec<Field<'t>> {
        let item = |item: &'t Spanned<DeValue<'t>>| Field {
            line: self.lines.number(item.span().start),
            value: item.get_ref(),
            ..field.clone()
        };
        items.iter().map(item).collect()
    }

    pub(super) fn boolean(&mut self, field: &Field<'_>, rule: &str) -> Option<bool> {
        match field.value {
            DeValue::Boolean(boolean) => Some(*boolean),
            _ => self.mistyped(field, rule),
        }
    }

    /// The value that one of these words stands for. `what` says what the words are.
    pub(super) fn choice<T: Clone>(
        &mut self,
        field: &Field<'_>,
        what: &str,
        words: &[(&str, T)],
        rule: &str,
    ) -> Option<T> {
        let text = self.string(field, rule)?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(value.clone()),
            None => self.refused(field, format!("{} is not {what}; {rule}", quote(text))),
        }
    }

    /// Replaces the default in `target` if the key is there and one of two words.
    pub(super) fn set_choice<T: Clone>(
        &mut self,
        table: &Table<'_>,
        name: &str,
        what: &str,
        words: &[(&str, T); 2],
        target: &mut T,
    ) {
        let Some(field) = self.field(table, name) else { return };
        let rule = format!("write \"{}\" or \"{}\"", words[0].0, words[1].0);
        if let Some(value) = self.choice(&field, what, words, &rule) {
            *target = value;
        }
    }

    /// How many of something, if the key is there.
    pub(super) fn count(&mut self, table: &Table<'_>, name: &str) -> Option<u16> {
        let field = self.field(table, name)?;
        self.integer(&field, COUNT).and_then(|count| u16::try_from(count).ok())
    }

    /// Replaces the default in `target` if the key is there; false if what is there cannot be used.
    pub(super) fn set_duration(
        &mut self,
        table: &Table<'_>,
        name: &str,
        range: &RangeInclusive<Duration>,
        target: &mut Duration,
    ) -> bool {
        let Some(field) = self.field(table, name) else { return true };
        let Some(duration) = self.duration(&field, range, "") else { return false };
        *target = duration;
        true
    }

    /// The same for a duration that may be "off".
    pub(super) fn set_duration_or_off(
        &mut self,
        table: &Table<'_>,
        name: &str,
        range: &RangeInclusive<Duration>,
        target: &mut Option<Duration>,
    ) {
        let Some(field) = self.field(table, name) else { return };
        if field.is("off") {
            *target = None;
        } else if let Some(duration) = self.duration(&field, range, ", or \"off\"") {
            *target = Some(duration);
        }
    }

    pub(super) fn integer(&mut self, field: &Field<'_>, range: RangeInclusive<u32>) -> Option<u32> {
        let rule = format!("write an integer from {} to {}", range.start(), range.end());
        let DeValue::Integer(integer) = field.value else { return self.mistyped(field, &rule) };
        let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|n| range.contains(n));
        if number.is_none() {
            self.refuse(field, format!("{} is out of range; {rule}", shorten(&integer.to_string())));
        }
        number
    }

    /// `or_else` names another value that the caller accepts, such as ` or "off"`.
    pub(super) fn duration(
        &mut self,
        field: &Field<'_>,
        range: &RangeInclusive<Duration>,
        or_else: &str,
    ) -> Option<Duration> {
        let (min, max) = (duration::format(*range.start()), duration::format(*range.end()));
        let rule = format!("write a duration from \"{min}\" to \"{max}\"{or_else}");
        let text = self.string(field, &rule)?;
        match duration::parse(text) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => self.refused(field, format!("{} is out of range; {rule}", quote(text))),
            Err(error) => self.refused(field, format!("{error}{or_else}")),
        }
    }

    /// A string whose `${NAME}` are replaced. Neither the string nor the replacement appears in an error.
    pub(super) fn expanded(&mut self, field: &Field<'_>, rule: &str) -> Option<String> {
        let DeValue::String(text) = field.value else {
            return self.mistyped_secret(field, rule);
        };
        match expand(text, self.env) {
            Ok(expanded) => Some(expanded),
            Err(errors) => {
                for message in errors {
                    self.refuse(field, message);
                }
                None
            }
        }
    }

    fn mistyped_secret<T>(&mut self, field: &Field<'_>, rule: &str) -> Option<T> {
        self.refused(field, format!("this is {}; {rule}", type_of(field.value)))
    }

    fn mistyped<T>(&mut self, field: &Field<'_>, rule: &str) -> Option<T> {
        let found = match field.value {
            DeValue::String(text) => quote(text),
            DeValue::Integer(integer) => shorten(&integer.to_string()),
            DeValue::Float(float) => shorten(&float.to_string()),
            DeValue::Boolean(boolean) => boolean.to_string(),
            DeValue::Datetime(datetime) => datetime.to_string(),
            DeValue::Array(_) | DeValue::Table(_) => "this".to_owned(),
        };
        self.refused(field, format!("{found} is {}; {rule}", type_of(field.value)))
    }

    /// [`refuse`](Self::refuse) as the end of an accessor.
    pub(super) fn refused<T>(&mut self, field: &Field<'_>, message: String) -> Option<T> {
        self.refuse(field, message);
        None
    }
}

impl<'v> Field<'v> {
    /// The value as TOML has it.
    pub(super) fn value(&self) -> &'v DeValue<'v> {
        self.value
    }

    /// Whether the value is this string.
    pub(super) fn is(&self, text: &str) -> bool {
        self.value.as_str() == Some(text)
    }

    pub(super) fn is_array(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }
}

impl Table<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }
}

fn type_of(value: &DeValue<'_>) -> String {
    let name = value.type_str();
    let article = if name.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// A number as a message shows it.
fn shorten(number: &str) -> String {
    match number.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &number[..end]),
        None => number.to_owned(),
    }
}

/// The known key that was probably meant.
fn closest<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    const LENGTH_MAX: usize = 64;
    let written = written.to_ascii_lowercase();
    let distance = |key: &str| strsim::damerau_levenshtein(&written, key);
    let best = known.iter().filter(|_| written.len() <= LENGTH_MAX).min_by_key(|key| distance(key))?;
    (distance(best) <= best.len().div_ceil(3)).then_some(best)
}

//! `${NAME}` and `${file:/PATH}` in the values that may hold secrets.

/// How the name of a file begins.
pub(super) const FILE: &str = "file:";

/// Where the value of a `${NAME}` comes from; of a file's, it is asked for `file:/PATH`.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces every `${NAME}` by its value and `$$` by `$`. The errors, of which all are returned, hold names only: the
/// text may be a secret.
pub(super) fn expand(text: &str, env: Env<'_>) -> Result<String, Vec<String>> {
    let mut expanded = String::with_capacity(text.len());
    let mut errors = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = name(rest) {
            match env(name) {
                Some(value) if !value.is_empty() => expanded.push_str(&value),
                Some(_) => errors.push(format!("${{{name}}} is empty; give it a value")),
                None if name.starts_with(FILE) => errors.push(format!(
                    "${{{name}}} cannot be read; name a file of at most 64 KiB of text that the account of outboxd may read"
                )),
                None => errors.push(format!(
                    "${{{name}}} is not set; put it into the environment, or into a systemd credential of this name"
                )),
            }
            rest = after;
        } else {
            let rule = "write ${NAME} for a variable, ${file:/PATH} for a file, or \"$$\" for the character";
            errors.push(format!("a \"$\" stands alone; {rule}"));
        }
    }
    expanded.push_str(rest);
    if errors.is_empty() { Ok(expanded) } else { Err(errors) }
}

/// Writes a text so that [`expand`] gives it back.
pub(super) fn escape(text: &str) -> String {
    text.replace('$', "$$")
}

/// Splits `{NAME}rest`.
fn name(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.strip_prefix('{')?.split_once('}')?;
    (is_variable_name(name) || is_file_name(name)).then_some((name, rest))
}

/// An absolute path: what is relative means another file wherever the daemon is started.
fn is_file_name(name: &str) -> bool {
    name.strip_prefix(FILE).is_some_and(|path| path.starts_with('/') && path.len() <= 255 && is_plain(path))
}

fn is_plain(path: &str) -> bool {
    path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-' | b'@' | b'+'))
}

/// `[A-Za-z_][A-Za-z0-9_]*`, which is also safe as the name of a file.
pub(super) fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

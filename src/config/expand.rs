//! `${NAME}` in the values that may hold secrets.

/// Where the value of a `${NAME}` comes from.
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
                None => errors.push(format!(
                    "${{{name}}} is not set; put it into the environment, or into a systemd credential of this name"
                )),
            }
            rest = after;
        } else {
            errors.push("a \"$\" stands alone; write ${NAME} for a variable, or \"$$\" for the character".to_owned());
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
    is_variable_name(name).then_some((name, rest))
}

/// `[A-Za-z_][A-Za-z0-9_]*`, which is also safe as the name of a file.
pub(super) fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

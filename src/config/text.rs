//! The file as text: lines, sections, and how keys and values are shown in a message.

/// Where the lines and the `[section]` headers of a file are.
pub(super) struct Lines<'t> {
    text: &'t str,
    /// The offset of every line.
    starts: Vec<usize>,
    /// The number and the path of every line that looks like `[path]` or `[[path]]`. Only messages rely on it, so a
    /// multi-line string that holds such a line does no harm.
    headers: Vec<(usize, &'t str)>,
}

impl<'t> Lines<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let headers =
            text.split('\n').enumerate().filter_map(|(i, line)| header(line).map(|path| (i + 1, path))).collect();
        Self { text, starts, headers }
    }

    /// The number of the line that holds the byte at this offset; the first is 1.
    pub(super) fn number(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset)
    }

    /// The offset at which a line starts.
    pub(super) fn start(&self, number: usize) -> usize {
        self.starts.get(number - 1).copied().unwrap_or(self.text.len())
    }

    /// The header line that a line belongs to, and its path; `(0, "")` before the first.
    pub(super) fn section(&self, number: usize) -> (usize, &'t str) {
        let following = self.headers.partition_point(|&(line, _)| line <= number);
        following.checked_sub(1).map_or((0, ""), |i| self.headers[i])
    }
}

fn header(line: &str) -> Option<&str> {
    let inner = line.trim().strip_prefix('[')?;
    let inner = inner.strip_prefix('[').unwrap_or(inner);
    let (path, rest) = inner.split_once(']')?;
    let rest = rest.strip_prefix(']').unwrap_or(rest).trim_start();
    let is_path = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-. \"'".contains(&b));
    (is_path && (rest.is_empty() || rest.starts_with('#'))).then_some(path.trim())
}

/// Extends the path of a table by a key, quoted if TOML asks for that.
pub(super) fn join(path: &str, key: &str) -> String {
    let key = if is_bare(key) { key.to_owned() } else { quote(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

pub(super) fn is_bare(key: &str) -> bool {
    (1..=SHOWN_CHARS_MAX).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

const SHOWN_CHARS_MAX: usize = 64;

/// A value as a message shows it: in quotes, on one line, and cut if it is long.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

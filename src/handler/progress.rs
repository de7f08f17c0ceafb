//! What a command says while it runs: lines of its standard output that are an object with `progress`, such as
//! `{"progress": {"page": 3, "of": 10}}`. They are taken out; the rest is its answer.

use serde_json::Value;

use super::answer::{self, Fields};

/// The longest line that is looked at, in bytes.
const LINE_BYTES_MAX: usize = answer::BYTES_MAX;

/// Splits what a process writes, piece by piece. It holds one line and the beginning of the rest, whatever it is fed.
pub(super) struct Lines {
    /// The longest answer.
    answer_max: usize,
    /// The rest, up to one byte more than an answer may have, so that a cut answer is not taken for a complete one.
    pub(super) kept: Vec<u8>,
    /// The line that has begun.
    line: Vec<u8>,
    /// What becomes of the rest of a line that is longer than a line may be.
    overlong: Option<Overlong>,
}

enum Overlong {
    Kept,
    Dropped,
}

impl Lines {
    /// For an answer of at most so many bytes.
    pub(super) fn new(answer_max: usize) -> Self {
        Self { answer_max, kept: Vec::new(), line: Vec::new(), overlong: None }
    }

    /// Takes the next piece; returns the newest progress in it.
    pub(super) fn read(&mut self, piece: &[u8]) -> Option<Value> {
        let mut newest = None;
        for part in piece.split_inclusive(|&byte| byte == b'\n') {
            match self.overlong {
                None => self.line.extend_from_slice(part),
                Some(Overlong::Kept) => self.keep(part),
                Some(Overlong::Dropped) => {}
            }
            if part.ends_with(b"\n") {
                newest = self.end().or(newest);
            } else if self.line.len() > LINE_BYTES_MAX {
                newest = self.cut().or(newest);
            }
        }
        newest
    }

    /// The line has ended.
    pub(super) fn end(&mut self) -> Option<Value> {
        self.overlong = None;
        if self.line.len() > LINE_BYTES_MAX {
            let progress = self.cut();
            self.overlong = None;
            return progress;
        }
        let line = std::mem::take(&mut self.line);
        let progress = progress(&line);
        if progress.is_none() {
            self.keep(&line);
        }
        progress
    }

    /// The line is too long to be looked at as a whole. Its beginning says what it was meant to be.
    fn cut(&mut self) -> Option<Value> {
        let line = std::mem::take(&mut self.line);
        let is_progress = line
            .trim_ascii_start()
            .strip_prefix(b"{")
            .is_some_and(|fields| fields.trim_ascii_start().starts_with(b"\"progress\""));
        if is_progress {
            self.overlong = Some(Overlong::Dropped);
            let note = format!("the line of progress had more than {LINE_BYTES_MAX} bytes");
            return Some(serde_json::json!({ "outboxd": note }));
        }
        self.overlong = Some(Overlong::Kept);
        self.keep(&line);
        None
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = (self.answer_max + 1).saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// The progress that a line tells. An object with `outcome` is an answer, whatever else is in it.
fn progress(line: &[u8]) -> Option<Value> {
    if !line.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let fields: Fields<'_> = serde_json::from_slice(line).ok()?;
    let progress = fields.get("progress").filter(|_| !fields.contains_key("outcome"))?;
    // Nested too deeply to be built: it says that it is alive all the same.
    Some(serde_json::from_str(progress.get()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What is told, and what is kept, when the text comes in pieces of this size.
    fn split(text: &[u8], size: usize) -> (Vec<Value>, Vec<u8>) {
        let mut lines = Lines::new(answer::BYTES_MAX);
        let mut told: Vec<Value> = text.chunks(size).filter_map(|piece| lines.read(piece)).collect();
        told.extend(lines.end());
        (told, lines.kept)
    }

    #[test]
    fn lines_of_progress_are_taken_out_and_the_rest_is_the_answer() {
        let text = b"reading\n{\"progress\": 1}\n  {\"progress\":{\"page\": 2}}\r\n{\"outcome\":\n\"done\"}\n{\"progress\": 3}";
        for size in [1, 2, 7] {
            let (told, kept) = split(text, size);
            assert_eq!(told, [json!(1), json!({ "page": 2 }), json!(3)], "{size}");
            assert_eq!(kept, b"reading\n{\"outcome\":\n\"done\"}\n", "{size}");
        }
        let (told, _) = split(text, 1000);
        assert_eq!(told, [json!({ "page": 2 }), json!(3)], "the newest of a piece, and the line without an end");
    }

    #[test]
    fn what_only_looks_like_progress_is_kept() {
        for line in [
            "{\"progress\": 1",
            "[{\"progress\": 1}]",
            "{\"outcome\": \"done\", \"progress\": 1}",
            "{\"a\": {\"progress\": 1}}",
        ] {
            assert_eq!(split(line.as_bytes(), 5), (vec![], line.as_bytes().to_vec()));
        }
    }

    #[test]
    fn progress_that_is_too_long_is_dropped_with_a_note() {
        let long = format!("{{ \"progress\": \"{}\"}}\n7\n", "x".repeat(LINE_BYTES_MAX));
        for size in [100, 1 << 20] {
            let (told, kept) = split(long.as_bytes(), size);
            assert!(told.len() == 1 && told[0]["outboxd"].is_string(), "{told:?}");
            assert_eq!(kept, b"7\n");
        }
        let deep = format!("{{\"progress\": {}{}}}\n", "[".repeat(1000), "]".repeat(1000));
        assert_eq!(split(deep.as_bytes(), 64), (vec![Value::Null], vec![]));
    }

    proptest! {
        #[test]
        fn what_is_held_is_bounded_and_without_progress_it_is_the_beginning(
            parts in proptest::collection::vec(("[a-z{\"\n]{0,8}", 0usize..100_000), 0..6), size in 1usize..10_000,
        ) {
            let text: Vec<u8> = parts.iter().flat_map(|(word, times)| word.as_bytes().iter().copied().cycle().take(if word.is_empty() { 0 } else { *times })).collect();
            let (told, kept) = split(&text, size);
            prop_assert!(told.is_empty());
            prop_assert_eq!(&kept[..], &text[..text.len().min(answer::BYTES_MAX + 1)]);
        }
    }
}

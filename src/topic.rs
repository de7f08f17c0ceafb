//! Topics and the patterns that select them.
//!
//! A topic is a list of words separated by dots (`user.registered`). A pattern is the same with two wildcards, as in
//! RabbitMQ's topic exchange: `*` stands for exactly one word, `#` for any number of words, none included.
//! Topics that begin with the word `outboxd` are the daemon's own: only a pattern that begins with this word selects them, so
//! that nobody who wants every event of an app is surprised by them.
//! `outbox.topic_regex` in `migrations/` is the same rule in SQL; a property test holds the two together.

use std::fmt;
use std::str::FromStr;

/// The first word of the daemon's own topics.
pub const OWN_WORD: &str = "outboxd";
/// The longest topic or pattern, in bytes.
pub const TOPIC_BYTES_MAX: usize = 255;

/// A list of words with wildcards that selects topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    words: Vec<Word>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Literal(String),
    One,
    Any,
}

/// Why a text is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("a topic pattern must not be empty; `#` selects every topic")]
    Empty,
    #[error("a topic pattern has at most {TOPIC_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    #[error("a topic pattern is words separated by single dots, but word {0} of {1:?} is empty")]
    EmptyWord(usize, String),
    #[error("the word {0:?} must be `*`, `#`, or letters, digits, `_`, `:` and `-`")]
    BadWord(String),
}

impl Pattern {
    /// Whether this pattern selects `topic`.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let topic: Vec<&str> = topic.split('.').collect();
        if topic[0] == OWN_WORD && !matches!(&self.words[0], Word::Literal(_)) {
            return false;
        }
        // `reach[i]`: the words of the pattern seen so far can match the first `i` words of the topic.
        let mut reach = vec![false; topic.len() + 1];
        reach[0] = true;
        for word in &self.words {
            if word == &Word::Any {
                let first = reach.iter().position(|&r| r).unwrap_or(reach.len());
                reach[first..].fill(true);
            } else {
                for i in (0..topic.len()).rev() {
                    reach[i + 1] = reach[i] && word.matches(topic[i]);
                }
                reach[0] = false;
            }
        }
        reach[topic.len()]
    }

    /// Whether it has no wildcard, so that it is a topic as well.
    #[must_use]
    pub fn is_topic(&self) -> bool {
        self.words.iter().all(|word| matches!(word, Word::Literal(_)))
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Word {
    fn matches(&self, word: &str) -> bool {
        match self {
            Word::Literal(literal) => literal == word,
            Word::One | Word::Any => true,
        }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > TOPIC_BYTES_MAX {
            return Err(PatternError::TooLong(text.len()));
        }
        let words = text
            .split('.')
            .enumerate()
            .map(|(i, word)| match word {
                "" => Err(PatternError::EmptyWord(i + 1, text.to_owned())),
                "*" => Ok(Word::One),
                "#" => Ok(Word::Any),
                _ if word.bytes().all(is_word_byte) => Ok(Word::Literal(word.to_owned())),
                _ => Err(PatternError::BadWord(word.to_owned())),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), words })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, topic: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(topic)
    }

    #[test]
    fn star_is_one_word_and_hash_any_number() {
        let table = [
            ("user.registered", "user.registered", true),
            ("user.registered", "user.registered.again", false),
            ("user.*", "user.registered", true),
            ("user.*", "user", false),
            ("user.*", "user.a.b", false),
            ("user.#", "user", true),
            ("user.#", "user.a.b", true),
            ("#", "anything.at.all", true),
            ("#.created", "created", true),
            ("#.created", "a.b.created", true),
            ("#.created", "a.created.b", false),
            ("a.#.b", "a.b", true),
            ("a.#.b", "a.x.y.b", true),
            ("a.#.b", "a.x.y", false),
            ("#.#", "a", true),
            ("*.#.*", "a", false),
            ("*.#.*", "a.b", true),
        ];
        for (pattern, topic, expected) in table {
            assert_eq!(matches(pattern, topic), expected, "{pattern} against {topic}");
        }
    }

    #[test]
    fn a_bad_pattern_names_the_word_and_the_rule() {
        assert_eq!("".parse::<Pattern>().unwrap_err(), PatternError::Empty);
        assert_eq!("a..b".parse::<Pattern>().unwrap_err(), PatternError::EmptyWord(2, "a..b".into()));
        assert_eq!("a.b*".parse::<Pattern>().unwrap_err(), PatternError::BadWord("b*".into()));
        assert_eq!("a".repeat(256).parse::<Pattern>().unwrap_err(), PatternError::TooLong(256));
    }
}

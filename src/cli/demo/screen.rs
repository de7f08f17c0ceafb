//! The live mode's stdout. A reader who has stopped reading, or a terminal that is held, must not hold the demo: lines
//! go through a thread that may wait, and it knows when the reader is gone.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Texts that wait for the reader. More of them are lost; the tables have everything.
const TEXTS_MAX: usize = 1000;
/// How long the reader may take for what is left at the end.
const FINISH_MAX: Duration = Duration::from_secs(1);

pub(super) struct Screen {
    texts: SyncSender<String>,
    /// Everything is written, or the reader is gone.
    ended: CancellationToken,
    pub(super) paint: Paint,
}

impl Screen {
    pub(super) fn stdout() -> Self {
        let (texts, waiting) = sync_channel(TEXTS_MAX);
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        std::thread::spawn(move || {
            write_all(&waiting);
            drop(end);
        });
        Self { texts, ended, paint: Paint::new() }
    }

    pub(super) fn print(&self, text: &str) {
        let _ = self.texts.try_send(text.to_owned());
    }

    /// Ends when nobody reads any more.
    pub(super) async fn closed(&self) {
        self.ended.cancelled().await;
    }

    /// Writes what is left.
    pub(super) async fn finish(self) {
        let Self { texts, ended, .. } = self;
        drop(texts);
        let _ = tokio::time::timeout(FINISH_MAX, ended.cancelled()).await;
    }
}

fn write_all(texts: &Receiver<String>) {
    let mut stdout = std::io::stdout();
    while let Ok(text) = texts.recv() {
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            return;
        }
    }
}

/// Colours, on a terminal that wants them.
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    fn new() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self(std::io::stdout().is_terminal() && !dumb && !set("NO_COLOR"))
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.code("2", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.code("1;31", text)
    }

    pub(super) fn green(self, text: &str) -> String {
        self.code("32", text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.code("33", text)
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

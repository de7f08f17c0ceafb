//! A command that says in a file when it begins and ends, and between the two waits for a gate.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::until;

/// A folder with the gate and the list of runs.
pub(crate) struct Gate {
    folder: PathBuf,
    /// While somebody may write into the pipe, whoever reads from it waits.
    held: Option<File>,
}

impl Gate {
    /// Whoever comes waits.
    pub(crate) fn closed() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("outboxd-gate-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let pipe = folder.join("gate");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // For reading too, or opening it would wait for a reader.
        let held = File::options().read(true).write(true).open(&pipe).unwrap();
        Self { folder, held: Some(held) }
    }

    /// Nobody waits.
    pub(crate) fn opened() -> Self {
        let mut gate = Self::closed();
        gate.open();
        gate
    }

    /// Lets everybody through, for good.
    pub(crate) fn open(&mut self) {
        // Whoever comes from here on finds a file that has ended, then those who wait find that the pipe has.
        let file = self.folder.join("open");
        std::fs::write(&file, "").unwrap();
        std::fs::rename(&file, self.folder.join("gate")).unwrap();
        self.held = None;
    }

    /// The command as a line of a handler's table.
    pub(crate) fn command(&self) -> String {
        let folder = self.folder.display();
        format!(
            "command = [\"/bin/sh\", \"-c\", '''\
             echo \"begin $OUTBOX_EVENT_ID $OUTBOX_ATTEMPT $$\" >> {folder}/runs
             read -r nothing < {folder}/gate
             echo \"end $OUTBOX_EVENT_ID $OUTBOX_ATTEMPT $$\" >> {folder}/runs
             exit 0''']\n"
        )
    }

    /// What the runs have said, as `(begin or end, event, attempt, pid)`.
    pub(crate) fn runs(&self) -> Vec<(String, i64, u32, u32)> {
        let text = std::fs::read_to_string(self.folder.join("runs")).unwrap_or_default();
        let run = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, event, attempt, pid] = words[..] else { panic!("{line:?}") };
            (what.to_owned(), event.parse().unwrap(), attempt.parse().unwrap(), pid.parse().unwrap())
        };
        // A line without its end is being written.
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(run).collect()
    }

    /// The events for which a run has begun, or ended, in order and once for every time.
    pub(crate) fn events(&self, what: &str) -> Vec<i64> {
        let mut events: Vec<i64> = self.runs().iter().filter(|run| run.0 == what).map(|run| run.1).collect();
        events.sort_unstable();
        events
    }

    /// Waits until so many runs have begun.
    #[track_caller]
    pub(crate) fn begun(&self, count: usize) -> impl Future<Output = ()> {
        until(&format!("{count} runs have begun"), move || {
            let begun = self.events("begin").len();
            async move { begun == count }
        })
    }

    /// The process of the last run that began.
    pub(crate) fn last_pid(&self) -> u32 {
        self.runs().iter().rfind(|run| run.0 == "begin").unwrap().3
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whether a process lives. A zombie has ended; where nobody reaps orphans it stays in the list for ever.
pub(crate) fn lives(pid: u32) -> bool {
    let output = std::process::Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    let state = String::from_utf8(output.stdout).unwrap();
    !matches!(state.trim().chars().next(), None | Some('Z'))
}

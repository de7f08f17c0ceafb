//! The test of the test: the daemon is built with one known bug at a time, and torture must see each.
//!
//! A bug is a replacement of text that occurs exactly once. Where a bug would show once in a long time, it is widened, so that
//! it shows soon: what is tested here is whether torture looks, not how long it has to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A bug of this daemon or of another, as it would be in this one.
struct Bug {
    name: &'static str,
    edits: &'static [Edit],
    /// The run that shows it soon.
    run: &'static str,
    /// Why torture must see it.
    why: &'static str,
    /// As what it must see it.
    seen_as: &'static [&'static str],
}

struct Edit {
    file: &'static str,
    old: &'static str,
    new: &'static str,
}

/// Faults end their run within two minutes; the drain of one that loses events takes a minute of them.
const RUN_MAX: Duration = Duration::from_mins(4);

const BUGS: [Bug; 13] = [
    Bug {
        name: "listen-after-scan",
        why: "what is committed between the last read and LISTEN rings for nobody, and waits for a poll that is off",
        seen_as: &["I9"],
        run: "--no-faults --poll off --patience 3 --rounds 1 --calm 10 --storm 1",
        edits: &[
            Edit { file: "src/daemon/leader.rs", old: "    bell.listen().await?;\n", new: "" },
            Edit {
                file: "src/daemon/term/mod.rs",
                old: "let end = term.run(&mut ears, lost).await;",
                new: "let listen = async {
                          tokio::time::sleep(Duration::from_secs(5)).await;
                          let _ = links.bell.listen().await;
                          std::future::pending::<()>().await
                      };
                      let end = tokio::select! { end = term.run(&mut ears, lost) => end, () = listen => unreachable!() };",
            },
        ],
    },
    Bug {
        name: "producers-before-flag",
        why: "who reads \"awake\" after the list was made and before the flag says \"asleep\" rings never",
        seen_as: &["I9"],
        run: "--no-faults --poll off --patience 3 --rounds 1 --calm 60 --storm 1",
        edits: &[Edit {
            file: "src/daemon/read.rs",
            old: "            store.bell_set(true).await?;
            Ok(Answer::FellAsleep { producers: store.bell_producers().await? })",
            new: "            let producers = store.bell_producers().await?;
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            store.bell_set(true).await?;
            Ok(Answer::FellAsleep { producers })",
        }],
    },
    Bug {
        name: "scan-before-lock",
        why: "what the leader settles while this daemon stands by is not known to it, and is done again",
        seen_as: &["I4"],
        run: "--rounds 4 --calm 8 --storm 3 --mean 3 --faults kill-leader",
        edits: &[
            Edit {
                file: "src/daemon/leader.rs",
                old: "    stand_by(context, &leader).await?;\n",
                new: "    let scanned = leader.snapshot().await?;
                      let known: Vec<_> = context.handlers.borrow().iter().map(|spec| Arc::clone(&spec.name)).collect();
                      let before = leader.beginnings(&known).await?;
                      stand_by(context, &leader).await?;\n",
            },
            Edit {
                file: "src/daemon/leader.rs",
                old: "let (snapshot, last_id) = leader.snapshot().await?;",
                new: "let (snapshot, last_id) = scanned;",
            },
            Edit {
                file: "src/daemon/leader.rs",
                old: "let beginnings = leader.beginnings(&names).await?;",
                new: "let beginnings = if before.is_empty() { leader.beginnings(&names).await? } else { before };",
            },
        ],
    },
    Bug {
        name: "id-order",
        why: "as with `id > last`, a transaction that was open when a later one was read is never read",
        seen_as: &["log", "I9"],
        run: "--no-faults --events 1500",
        edits: &[Edit {
            file: "sql/tail_head.sql",
            old: "WHERE pg_visible_in_snapshot(late.xid::xid8, pg_current_snapshot())",
            new: "WHERE false",
        }],
    },
    Bug {
        name: "done-before-handler",
        why: "what a handler refuses is done nevertheless",
        seen_as: &["I1"],
        run: "--rounds 1 --calm 6 --storm 3 --faults kill-standby",
        edits: &[Edit {
            file: "src/daemon/runner.rs",
            old: "let outcome = running.await;",
            new: "tokio::spawn(running);
                  let outcome = Outcome::done();",
        }],
    },
    Bug {
        name: "settling-without-fence",
        why: "a leader whose lock is gone goes on: the lock's session is silent, so a standby takes it away, and two lead",
        seen_as: &["I4"],
        run: "--no-faults --rounds 1 --calm 30 --storm 10",
        edits: &[Edit {
            file: "src/daemon/leader.rs",
            old: "    let earlier = Earlier { snapshot, last_id };\n",
            new: "    let earlier = Earlier { snapshot, last_id };
                  Box::leak(Box::new(leader));
                  let leader = Store::new(target.connect(\"pool\").await?);\n",
        }],
    },
    Bug {
        name: "position-of-the-unsettled",
        why: "what was read and not settled when the leader was killed lies behind its position, and only the sweep finds it",
        seen_as: &["log"],
        run: "--rounds 1 --calm 4 --storm 40 --mean 2 --faults kill-leader,kill-both --rate 500",
        edits: &[Edit {
            file: "src/daemon/windows.rs",
            old: "    pub fn close(&mut self, end: Snapshot) {\n",
            new: "    pub fn close(&mut self, end: Snapshot) {\n        self.position = end.clone();\n",
        }],
    },
    Bug {
        name: "cursor-in-memory",
        why: "after a reconnect the daemon goes on behind what it had read, and what it had not settled is lost",
        seen_as: &["log"],
        run: "--rounds 1 --calm 4 --storm 30 --mean 2 --faults terminate,reset --rate 500",
        edits: &[
            Edit {
                file: "src/daemon/leader.rs",
                old: "/// Between two tries for the lock.\n",
                new: "pub(super) static KEPT: std::sync::Mutex<Option<crate::snapshot::Snapshot>> = std::sync::Mutex::new(None);
                      /// Between two tries for the lock.\n",
            },
            Edit {
                file: "src/daemon/leader.rs",
                old: "let beginnings = leader.beginnings(&names).await?;",
                new: "let mut beginnings = leader.beginnings(&names).await?;
                      if let Some(kept) = KEPT.lock().ok().and_then(|kept| kept.clone()) {
                          beginnings.iter_mut().for_each(|beginning| beginning.checkpoint.position = kept.clone());
                      }",
            },
            Edit {
                file: "src/daemon/term/reading.rs",
                old: "                let position = self.tail.read_head(cursor).clone();\n",
                new: "                let position = self.tail.read_head(cursor).clone();
                if let Ok(mut kept) = super::super::leader::KEPT.lock() {
                    *kept = Some(position.clone());
                }\n",
            },
        ],
    },
    Bug {
        name: "numeric-idempotency-key",
        why: "two handlers of one event are told apart by nothing, and after a failover nor are two events",
        seen_as: &["idempotency key"],
        run: "--no-faults --events 800",
        edits: &[Edit {
            file: "src/event.rs",
            old: "self.event.idempotency_key(self.installation, &self.handler)",
            new: "self.event.id.to_string()",
        }],
    },
    Bug {
        name: "no-heartbeat",
        why: "a listener that is connected and deaf is never noticed, and without a poll nothing else wakes the daemon",
        seen_as: &["I9"],
        run: "--no-faults --poll off --events 200 --deaf",
        edits: &[Edit {
            file: "src/daemon/term/doubt.rs",
            old: "self.deaf_at = (!self.heard).then_some(now + LOOP_BACK_MAX);",
            new: "self.deaf_at = None.or(self.deaf_at.filter(|_| now < now - LOOP_BACK_MAX));",
        }],
    },
    Bug {
        name: "keys-not-kept",
        why: "a delivery does not wait for the one before it of its key",
        seen_as: &["I6"],
        run: "--rounds 1 --calm 8 --storm 8 --faults kill-standby",
        edits: &[Edit {
            file: "src/daemon/lane/keys.rs",
            old: "            Turn::Later\n",
            new: "            Turn::Now\n",
        }],
    },
    Bug {
        name: "places-not-kept",
        why: "a delivery has a place, though as many of its key as may run do",
        seen_as: &["I7"],
        run: "--rounds 1 --calm 8 --storm 15 --faults kill-standby",
        edits: &[Edit {
            file: "src/daemon/lane/places.rs",
            old: "        let has_place = entry.taken < self.most;
        let has_share",
            new: "        let has_place = true;
        let has_share",
        }],
    },
    Bug {
        name: "lock-not-kept",
        why: "the lock is gone when the statement ends, so the standby has it too, and both do everything",
        seen_as: &["I4"],
        run: "--no-faults --rounds 1 --calm 6 --storm 4",
        edits: &[Edit {
            file: "sql/lead.sql",
            old: "pg_try_advisory_lock(",
            new: "pg_try_advisory_xact_lock(",
        }],
    },
];

/// What a build needs.
const PARTS: [&str; 8] = ["Cargo.toml", "Cargo.lock", "build.rs", "src", "sql", "migrations", "tests", "examples"];

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether every bug can still be put in: its text occurs once.
pub(crate) fn all_match_the_source() -> bool {
    let mut well = true;
    for bug in &BUGS {
        for Edit { file, old, .. } in bug.edits {
            let text = fs::read_to_string(package().join(file)).unwrap_or_default();
            let count = text.matches(old).count();
            if count != 1 {
                eprintln!("tests/torture/seeded.rs: {}: occurs {count} times in {file}, not once:\n{old}", bug.name);
                well = false;
            }
        }
    }
    well
}

/// Builds and runs each bug, or the one with this name; returns whether torture saw all of them.
pub(crate) fn all_are_seen(name: &str) -> bool {
    let bugs: Vec<&Bug> = BUGS.iter().filter(|bug| name.is_empty() || bug.name == name).collect();
    if bugs.is_empty() {
        let names: Vec<&str> = BUGS.iter().map(|bug| bug.name).collect();
        eprintln!("there is no seeded bug {name:?}; there are: {}", names.join(", "));
        return false;
    }
    if !all_match_the_source() {
        return false;
    }
    let mut missed = Vec::new();
    for bug in &bugs {
        println!("{}: {}", bug.name, bug.why);
        let binary = build(bug);
        let began = Instant::now();
        if let Some(text) = violation(&binary, bug) {
            println!("    seen after {:.0} s: {text}", began.elapsed().as_secs_f64());
        } else {
            println!("    NOT SEEN by torture {} --binary {}", bug.run, binary.display());
            missed.push(bug.name);
        }
    }
    println!("{} of {} seeded bugs seen; not seen: {missed:?}", bugs.len() - missed.len(), bugs.len());
    missed.is_empty()
}

/// The daemon with this bug.
fn build(bug: &Bug) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seeded");
    let source = folder.join("source");
    for part in PARTS {
        copy(&package().join(part), part, &source, bug);
    }
    forget(package(), &source);
    let target = folder.join("target");
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--offline", "--bin", "outboxd", "--target-dir"])
        .arg(&target)
        .current_dir(&source)
        // A bug may leave something unused.
        .env("RUSTFLAGS", "--cap-lints=allow")
        .status()
        .unwrap();
    assert!(status.success(), "{} does not build", bug.name);
    target.join("debug/outboxd")
}

/// Copies a file or folder, with the bug in it; what is there already as it must be is left alone, so that little is built.
fn copy(from: &Path, name: &str, to: &Path, bug: &Bug) {
    if from.is_dir() {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &format!("{name}/{}", entry.file_name().to_str().unwrap()), to, bug);
        }
        return;
    }
    let mut content = fs::read(from).unwrap();
    for edit in bug.edits.iter().filter(|edit| edit.file == name) {
        content = String::from_utf8(content).unwrap().replacen(edit.old, edit.new, 1).into_bytes();
    }
    let to = to.join(name);
    if fs::read(&to).is_ok_and(|there| there == content) {
        return;
    }
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::write(to, content).unwrap();
}

/// Runs torture against this daemon; the first violation it tells of that is the one to see.
fn violation(binary: &Path, bug: &Bug) -> Option<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(bug.run.split(' '))
        .arg("--binary")
        .arg(binary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reading = std::thread::spawn(move || std::io::read_to_string(&mut stdout).unwrap_or_default());
    let end = Instant::now() + RUN_MAX;
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    };
    let text = reading.join().unwrap();
    let expected = |line: &&str| bug.seen_as.iter().any(|invariant| line.starts_with(&format!("{invariant}: ")));
    let seen = text.lines().filter_map(|line| line.strip_prefix("VIOLATED ")).find(expected);
    let seen = seen.map(|line| line.chars().take(160).collect());
    // A run that neither ends well nor says why has not seen anything.
    seen.filter(|_| ended.is_some_and(|status| !status.success()))
}

/// Takes away what the source has no more: a copy of another day may have it.
fn forget(from: &Path, copied: &Path) {
    for entry in fs::read_dir(copied).unwrap() {
        let entry = entry.unwrap();
        let (original, copy) = (from.join(entry.file_name()), entry.path());
        match (copy.is_dir(), original.exists()) {
            (true, true) => forget(&original, &copy),
            (true, false) => fs::remove_dir_all(copy).unwrap(),
            (false, true) => {}
            (false, false) => fs::remove_file(copy).unwrap(),
        }
    }
}

//! What the demo's command handlers run: this program again, as a process of its own, with the event's payload on stdin
//! and the rest of the event in `OUTBOX_*`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Failure;
use super::super::output::print;
use super::app::{BROKEN, fails_first};

/// The exit codes of a command handler: the event will never be accepted, and try again.
const EXIT_DEAD: u8 = 65;
const EXIT_RETRY: u8 = 75;
const THUMBNAIL_PIXELS: u32 = 32;

#[derive(Debug, Args)]
pub(in crate::cli) struct DemoCommand {
    what: What,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    Permissions,
    Thumbnail,
}

#[derive(Deserialize)]
struct Payload {
    name: String,
    file: Option<i64>,
}

impl DemoCommand {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::with_code(EXIT_RETRY, format!("cannot read the payload: {error}")))?;
        let payload: Payload = serde_json::from_str(&text)
            .map_err(|error| Failure::with_code(EXIT_DEAD, format!("the payload is not as expected: {error}")))?;
        let result = match self.what {
            What::Permissions => permissions(&payload)?,
            What::Thumbnail => thumbnail(&payload)?,
        };
        print(&format!("{result}\n"))
    }
}

fn permissions(payload: &Payload) -> Result<Value, Failure> {
    let result = json!({ "name": payload.name, "may": ["read", "comment"] });
    write(&permissions_file(&variable("OUTBOX_EVENT_ID")?), result.to_string().as_bytes())?;
    Ok(result)
}

fn thumbnail(payload: &Payload) -> Result<Value, Failure> {
    let Payload { name, file } = payload;
    if name == BROKEN {
        return Err(Failure::with_code(EXIT_RETRY, "the picture ends in the middle"));
    }
    let first = variable("OUTBOX_ATTEMPT")? == "1";
    if first && file.is_some_and(|file| fails_first(file, name)) {
        return Err(Failure::with_code(EXIT_RETRY, "out of memory"));
    }
    let (file, image) = (thumbnail_file(&variable("OUTBOX_EVENT_ID")?), render(name));
    write(&file, &image)?;
    Ok(json!({ "thumbnail": file, "bytes": image.len() }))
}

/// The file of one event: never the name in the payload, which may come from anybody.
pub(super) fn permissions_file(event: &str) -> String {
    format!("permissions-{event}.json")
}

pub(super) fn thumbnail_file(event: &str) -> String {
    format!("thumbnail-{event}.pgm")
}

/// A small picture that differs from name to name: waves in the PGM format, which every viewer knows.
pub(super) fn render(name: &str) -> Vec<u8> {
    let seed = name.bytes().fold(7_u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let (across, down) = (seed % 13 + 1, seed / 13 % 13 + 1);
    let mut image = format!("P5\n{THUMBNAIL_PIXELS} {THUMBNAIL_PIXELS}\n255\n").into_bytes();
    let pixels = (0..THUMBNAIL_PIXELS).flat_map(|y| (0..THUMBNAIL_PIXELS).map(move |x| x * across + y * down));
    image.extend(pixels.map(|sum| (sum % 256).to_le_bytes()[0]));
    image
}

/// Whole or not at all, and the same however often the attempt is repeated.
fn write(name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let folder = variable("DEMO_FOLDER")?;
    let path = Path::new(&folder).join(name);
    let unfinished = Path::new(&folder).join(format!("{name}.{}", std::process::id()));
    let written = File::create_new(&unfinished)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&unfinished, &path));
    written.map_err(|error| Failure::with_code(EXIT_RETRY, format!("cannot write {}: {error}", path.display())))
}

fn variable(name: &str) -> Result<String, Failure> {
    std::env::var(name).map_err(|_| Failure::with_code(2, format!("{name} is not set: this is for the demo's daemon")))
}

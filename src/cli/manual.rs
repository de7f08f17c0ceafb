//! `outboxd completions SHELL` and `outboxd man`: what a package puts beside the binary.

use std::path::PathBuf;

use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use super::output::print;
use super::{Cli, Failure};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell that is to complete
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "outboxd", &mut script);
        print(&String::from_utf8_lossy(&script))
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write a page for each verb into this folder, instead of the first page to the output
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let command = Cli::command();
        let Some(folder) = &self.to else { return print(&page(command)?) };
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let pages = verbs.map(|verb| (format!("outboxd-{}.1", verb.get_name()), verb));
        for (name, command) in std::iter::once(("outboxd.1".to_owned(), &command)).chain(pages) {
            let path = folder.join(name);
            let written = std::fs::write(&path, page(command.clone())?);
            written.map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
        }
        Ok(())
    }
}

fn page(command: Command) -> Result<String, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

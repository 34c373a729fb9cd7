//! For the shell: completions, and manual pages made from the same definition as `--help`.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use serde_json::Value;

use super::exit::{Exit, Failure};
use super::report::Report;

#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// Which shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArguments {
    /// Folder for the pages; it must exist
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

/// Prints the script that a shell sources.
pub fn completions(arguments: &CompletionsArguments, command: Command) -> Report {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut shown(&command), "keystead", &mut script);
    Report::done(String::from_utf8_lossy(&script), Value::Null)
}

/// Without the commands that are not for people: clap's scripts would offer them, too.
fn shown(command: &Command) -> Command {
    Command::new("keystead")
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments())
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()))
}

/// Writes one page a command: `keystead.1`, `keystead-key-rotate.1`, …
pub fn man(arguments: &ManArguments, command: Command) -> Result<Report, Failure> {
    let pages = pages(command, &arguments.out).map_err(|error| {
        Failure::new(Exit::Failed, format!("{} cannot be written: {error}", arguments.out.display()))
    })?;
    let out = arguments.out.display();
    Ok(Report::done(format!("{pages} manual pages are in {out}.\n"), serde_json::json!({ "pages": pages })))
}

fn pages(command: Command, out: &Path) -> std::io::Result<usize> {
    clap_mangen::generate_to(command, out)?;
    let is_page = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "1");
    Ok(std::fs::read_dir(out)?.filter_map(Result::ok).filter(is_page).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let report = completions(&CompletionsArguments { shell }, crate::cli::Cli::command());
            assert!(report.text.contains("keystead") && report.text.contains("rotate"), "{shell}");
            assert!(!report.text.contains("The process that serves requests"), "{shell} offers a hidden command");
        }
    }

    #[test]
    fn manual_pages_are_made_for_every_command_a_person_types() {
        let folder = tempfile::tempdir().unwrap();
        let report = man(&ManArguments { out: folder.path().to_owned() }, crate::cli::Cli::command()).unwrap();
        assert!(report.text.contains("manual pages"), "{}", report.text);
        for page in ["keystead.1", "keystead-init.1", "keystead-key-rotate.1", "keystead-audit-query.1"] {
            let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(".TH") && text.contains("keystead"), "{page}");
        }
        let missing = man(&ManArguments { out: folder.path().join("missing") }, crate::cli::Cli::command());
        assert_eq!(missing.unwrap_err().exit, Exit::Failed);
    }
}

//! A question before a change.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::cli::exit::{Exit, Failure};

/// Asks on the terminal. Nobody there is a mistake of the caller, not a no.
pub fn confirm(question: &str) -> Result<(), Failure> {
    let (stdin, mut stderr) = (io::stdin(), io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return Err(Failure::new(Exit::Usage, "there is no terminal to ask on").next("say `--yes` if it is meant"));
    }
    let mut answer = String::new();
    let asked = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
    asked
        .and_then(|()| stdin.lock().read_line(&mut answer))
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot ask: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "nothing was done: the answer was not yes")),
    }
}

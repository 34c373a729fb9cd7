//! Colour, for eyes only: on a terminal, and not if `NO_COLOR` is set (no-color.org).

use std::io::{self, IsTerminal};

#[derive(Debug, Clone, Copy)]
pub enum Colour {
    Good,
    Uneasy,
    Bad,
}

pub fn paint(text: &str, colour: Colour) -> String {
    let wanted = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if !wanted {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Good => 32,
        Colour::Uneasy => 33,
        Colour::Bad => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

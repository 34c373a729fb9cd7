//! An error and its causes as one line, for reasons that status shows and for answers to a person.

use std::error::Error;

/// `what: why: why that`, each part once.
pub fn explain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

//! Text tables of at most 80 columns.
//!
//! Values may come from a token or a peer: control characters are replaced, so that none of them reaches the terminal.

use super::paint::{Colour, paint};

const WIDTH: usize = 80;
const GAP: &str = "  ";
/// What the last column keeps when others are long.
const LEAST_LAST: usize = 16;

/// Rows under headings. What does not fit is cut out of the middle of the last column, and of the widest others where that one would be
/// left without room.
pub fn columns(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let mut widths: Vec<usize> = headings.iter().map(|heading| length(heading)).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(length(cell));
        }
    }
    let last = widths.len().saturating_sub(1);
    let before = |widths: &[usize]| widths.iter().take(last).map(|width| width + GAP.len()).sum::<usize>();
    let needed = widths.last().map_or(0, |width| (*width).min(LEAST_LAST));
    while before(&widths) + needed > WIDTH {
        let Some(widest) = widths.iter_mut().take(last).max().filter(|width| **width > 1) else { break };
        *widest -= 1;
    }
    let room = WIDTH.saturating_sub(before(&widths));
    let line = |cells: &[&str]| {
        let mut line = String::new();
        for (index, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            if index == last {
                line.push_str(&shorten(cell, room));
            } else {
                line.push_str(&format!("{:width$}{GAP}", shorten(cell, *width)));
            }
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(headings);
    for row in &rows {
        text.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    text
}

/// Names and values, one a line; a long value goes on below itself. Words are never cut: a path must stay one.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let rows: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.clone(), None)).collect();
    painted_fields(&rows)
}

/// [`fields`] of which some are coloured, if colours are wanted at all.
pub fn painted_fields(rows: &[(&str, String, Option<Colour>)]) -> String {
    let width = rows.iter().map(|(name, ..)| length(name)).max().unwrap_or(0) + GAP.len();
    let mut text = String::new();
    for (name, value, colour) in rows {
        let mut label = *name;
        for line in wrap(&printable(value), WIDTH.saturating_sub(width)) {
            let line = colour.map_or_else(|| line.clone(), |colour| paint(&line, colour));
            text.push_str(format!("{label:width$}{line}").trim_end());
            text.push('\n');
            label = "";
        }
    }
    text
}

/// Paragraphs, each behind a dash.
pub fn list(items: &[String]) -> String {
    let mut text = String::new();
    for item in items {
        let mut lead = "- ";
        for line in wrap(&printable(item), WIDTH - lead.len()) {
            text.push_str(&format!("{lead}{line}\n"));
            lead = "  ";
        }
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        // There is always a last line: the vector starts with one.
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if length(line) + 1 + length(word) <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn shorten(text: &str, width: usize) -> String {
    let count = length(text);
    if count <= width {
        return text.to_owned();
    }
    let head = (width - 1).div_ceil(2);
    let tail = width - 1 - head;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{start}…{end}")
}

fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_never_exceeds_eighty_columns() {
        let rows = vec![vec!["1".into(), "x".repeat(200)], vec!["22".into(), "short".into()]];
        let text = columns(&["NUMBER", "VALUE"], &rows);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains('…') && text.contains("22      short\n"), "{text}");
    }

    /// Labels, models and names come from tokens, clouds and people, and may be as long as these allow.
    #[test]
    fn table_of_long_values_in_every_column_fits_and_shows_some_of_each() {
        for columns_of in 1..=9 {
            let headings =
                &["FIRST", "SECOND", "THIRD", "FOURTH", "FIFTH", "SIXTH", "SEVENTH", "EIGHTH", "NINTH"][..columns_of];
            for long in 0..=columns_of {
                let cell = |column| if column < long { "é".repeat(100) } else { "ab".to_owned() };
                let text = columns(headings, &[(0..columns_of).map(cell).collect()]);
                assert!(text.lines().all(|line| length(line) <= WIDTH), "{text}");
                let row = text.lines().nth(1).unwrap();
                assert_eq!(row.split_whitespace().count(), columns_of, "{text}");
                assert_eq!(row.matches('…').count(), long, "{text}");
            }
        }
    }

    #[test]
    fn long_values_go_on_below_themselves() {
        let text = fields(&[("Name", "word ".repeat(40).trim_end().to_owned()), ("Longer name", "b".into())]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().nth(1).unwrap().starts_with("             word"), "{text}");
        assert!(text.ends_with("Longer name  b\n"), "{text}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let text = columns(&["A"], &[vec!["a\x1b[2Jb\n".into()]]);
        assert!(!text.contains('\x1b'), "{text:?}");
        assert!(!fields(&[("A", "\x1b[2Jb".into())]).contains('\x1b'));
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn empty_value_keeps_its_line() {
        assert_eq!(fields(&[("A", String::new()), ("B", "b".into())]), "A\nB  b\n");
    }
}

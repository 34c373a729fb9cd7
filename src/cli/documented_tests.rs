//! The reference names every command and option that there is.

use clap::CommandFactory;

use super::Cli;

const PAGE: &str = include_str!("../../docs/commands.md");
/// Options that several commands share: a link to where they stand, and its heading.
const ETCD: (&str, &str) = ("(#reading-etcd)", "\n### Reading etcd\n");

/// `words` is the command's name: `["roots", "add"]`. A section may be of several commands that share their first word.
fn section(words: &[String]) -> Option<&'static str> {
    let names = |heading: &str| {
        let heading: Vec<&str> = heading.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let (group, rest) = (heading.first().copied(), heading.get(1..).unwrap_or_default());
        let whole = rest.is_empty() || rest == ["…"];
        group == words.first().map(String::as_str)
            && (whole || words.get(1).is_some_and(|word| rest.contains(&word.as_str())))
    };
    let mut sections = PAGE.split("\n## ").map(|section| section.split_once('\n').unwrap_or((section, "")));
    sections.find_map(|(heading, text)| heading.strip_prefix("keystead ").is_some_and(names).then_some(text))
}

fn undocumented(command: &clap::Command, words: &mut Vec<String>, missing: &mut Vec<String>) {
    let (_, etcd) = PAGE.split_once(ETCD.1).unwrap();
    for each in command.get_subcommands().filter(|each| !each.is_hide_set()) {
        words.push(each.get_name().to_owned());
        match section(words) {
            _ if each.has_subcommands() => {}
            None => missing.push(words.join(" ")),
            Some(text) => {
                let named = |option: &String| text.contains(option) || (text.contains(ETCD.0) && etcd.contains(option));
                let options = each.get_arguments().filter_map(clap::Arg::get_long).map(|long| format!("--{long}"));
                let unnamed = options.filter(|option| !named(option));
                missing.extend(unnamed.map(|option| format!("{} {option}", words.join(" "))));
            }
        }
        undocumented(each, words, missing);
        words.pop();
    }
}

#[test]
fn every_command_and_option_is_documented() {
    let mut missing = Vec::new();
    undocumented(&Cli::command(), &mut Vec::new(), &mut missing);
    assert!(missing.is_empty(), "docs/commands.md does not name {missing:#?}");
}

//! What a person at a shell meets: completions that shells take, pages that `man` shows, colour and questions on a terminal only.

use std::fs;
use std::process::{Command, Output};

use crate::daemon::{Finished, Site};

/// `line` on a terminal of its own, answered with `typed`.
fn on_a_terminal(site: &Site, line: &str, typed: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new("script");
    // -e: with the command's own code.
    command.args(["-qec", &format!("{} {line}", env!("CARGO_BIN_EXE_keystead")), "/dev/null"]);
    command.env_remove("NO_COLOR").env("KEYSTEAD_CONFIG", site.config()).envs(environment.iter().copied());
    let typed_at = site.path().join("typed");
    fs::write(&typed_at, typed).unwrap();
    command.stdin(fs::File::open(typed_at).unwrap()).output().expect("script of util-linux runs")
}

fn shown(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn colour_is_for_terminals_and_not_where_it_is_unwanted() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    for line in ["status", "doctor"] {
        let coloured = shown(&on_a_terminal(&site, line, "", &[]));
        assert!(coloured.contains("\x1b[3"), "{line}: {coloured:?}");
        let plain = shown(&on_a_terminal(&site, line, "", &[("NO_COLOR", "1")]));
        assert!(!plain.contains('\x1b') && plain.len() > 100, "{line}: {plain:?}");
        let piped = site.command([line]).env("CLICOLOR_FORCE", "1").output().unwrap();
        assert!(!shown(&piped).contains('\x1b'), "{line}: {piped:?}");
    }
    let json = shown(&on_a_terminal(&site, "status --output json", "", &[]));
    assert!(!json.contains('\x1b') && json.contains("\"online\""), "{json}");
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_command_asks_on_a_terminal_only_and_yes_spares_the_question() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let error = site.keystead(["key", "rotate"]).expect_failure(2);
    assert!(error.contains("no terminal") && error.contains("--yes"), "{error}");
    let declined = on_a_terminal(&site, "key rotate", "n\n", &[]);
    assert!(shown(&declined).contains("[y/N]") && declined.status.code() == Some(1), "{declined:?}");
    assert_eq!(daemon.status().await.active_generation, 1);
    let asked = on_a_terminal(&site, "key rotate", "y\n", &[]);
    assert!(shown(&asked).contains("[y/N]") && asked.status.success(), "{asked:?}");
    let spared = on_a_terminal(&site, "key rotate --yes --force 'for a test'", "", &[]);
    assert!(!shown(&spared).contains("[y/N]") && spared.status.success(), "{spared:?}");
    assert_eq!(daemon.status().await.active_generation, 3);
    assert!(daemon.stop().success());
}

/// Neither with the longest names that a configuration takes.
#[tokio::test]
async fn what_is_printed_fits_eighty_columns() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    site.keystead(["key", "rotate", "--yes", "--force", "reason ".repeat(28).trim()]).expect_success();
    for line in
        ["status", "doctor", "key list", "key describe 3", "roots list", "token list", "audit query", "audit verify"]
    {
        let mut command = site.command([]);
        let output = command.args(line.split(' ')).output().unwrap();
        let text = shown(&output);
        assert!(text.lines().count() > 1, "{line}: {output:?}");
        // A path stays one word, so that it can be copied.
        let long = text.lines().find(|line| line.chars().count() > 80 && !line.contains('/'));
        assert_eq!(long, None, "{line}: {text}");
    }
    assert!(daemon.stop().success());
}

#[test]
fn bash_completes_commands_and_options_and_offers_no_hidden_one() {
    let site = Site::bare("");
    let script = site.path().join("completions.bash");
    fs::write(&script, site.keystead(["completions", "bash"]).expect_success()).unwrap();
    let complete = |words: &[&str]| {
        let mut command = Command::new("bash");
        let last = words.len() - 1;
        let ask = r#"source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _keystead keystead "${@: -1}" "${COMP_WORDS[COMP_CWORD - 1]}"; printf '%s\n' "${COMPREPLY[@]}""#;
        let output = command.args(["--norc", "-c", ask, "bash"]).arg(&script).args(words).output().unwrap();
        assert!(output.stderr.is_empty(), "{words:?} {last}: {output:?}");
        shown(&output).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["keystead", "key", "ro"]), ["rotate"]);
    assert_eq!(complete(&["keystead", "key", "rotate", "--f"]), ["--force"]);
    let commands = complete(&["keystead", ""]);
    assert!(commands.contains(&"audit".to_owned()) && !commands.contains(&"server".to_owned()), "{commands:?}");
}

/// Where these shells are not installed, what clap makes for them is only looked at (`src/cli/shell.rs`).
#[test]
fn zsh_and_fish_take_their_scripts() {
    let site = Site::bare("");
    for shell in ["zsh", "fish"] {
        let script = site.path().join(shell);
        fs::write(&script, site.keystead(["completions", shell]).expect_success()).unwrap();
        match Command::new(shell).arg("-n").arg(&script).output() {
            Ok(output) => assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}"),
            Err(_) => println!("{shell} is not installed: its script is not read here"),
        }
    }
}

/// By the program that shows them: each without a complaint, and each command that `--help` lists has one.
#[test]
fn manual_pages_are_shown_by_man_without_a_complaint() {
    let site = Site::bare("");
    let folder = site.path().join("man");
    fs::create_dir(&folder).unwrap();
    site.keystead(["man", "--out", folder.to_str().unwrap()]).expect_success();
    let pages: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let help = site.keystead(["--help"]).expect_success();
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let named = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for command in named.filter_map(|line| line.split_whitespace().next()).filter(|command| *command != "help") {
        assert!(pages.contains(&folder.join(format!("keystead-{command}.1"))), "no page of {command}");
    }
    if Command::new("man").arg("--version").output().is_err() {
        println!("man is not installed: the pages are not shown here");
        return;
    }
    for page in pages {
        let output = Command::new("man").args(["--warnings", "-l"]).arg(&page).env("MANWIDTH", "80").output().unwrap();
        let text = shown(&output);
        assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", page.display());
        assert!(text.contains("NAME") && text.contains("keystead"), "{}: {text}", page.display());
    }
}

//! The command line: one file a command.
//!
//! A command makes a [`report::Report`] or fails with a [`exit::Failure`]; printing both, as text or JSON, is done here, once.
//! Commands reach the running daemon through its sockets only, and find those through the same configuration. What
//! starts processes or opens a token goes through [`wiring`]. `docs/commands.md` is the reference for people.

mod audit;
mod backup;
mod config_check;
mod connection;
mod custodian;
mod doctor;
#[cfg(test)]
mod documented_tests;
mod drift;
mod etcd;
mod exit;
mod init;
mod internal;
mod key;
mod kms;
mod lease;
mod paint;
mod recover;
mod recovery;
mod reload;
mod remedy;
mod report;
mod roots;
mod serve;
mod shell;
mod source;
mod status;
mod store;
mod table;
mod time;
mod token;
mod tpm;
#[cfg(feature = "cloud")]
mod upstream;
mod wiring;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Settings, Source};
use crate::failpoint;
use exit::Failure;
use report::{Format, Report};

/// Hardware key service for Kubernetes edge masters: KMS v2 on a PKCS#11 token or a TPM 2.0.
#[derive(Debug, Parser)]
#[command(name = "keystead", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Config file [default: $KEYSTEAD_CONFIG, else /etc/keystead/config.toml if it exists, else built-in defaults]
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// What to print: text for people, JSON for programs
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the key: a CMK in the token, the first generation, the store
    Init(init::Arguments),
    /// Run the daemon in the foreground
    Serve,
    /// Show what the daemon serves, and what an operator should know
    Status(status::Arguments),
    /// Have the daemon read its configuration again; all that changed is applied, or nothing
    ///
    /// Refused, with the key named, where a restart is needed. `kill -HUP` of the daemon does the same and answers in its log.
    Reload,
    /// Look for everything that is wrong or soon will be, and say what to do; changes nothing
    ///
    /// Ends with the code of the worst finding: 0 for ok and info, 6 for warnings, 7 for anything critical. What could not
    /// be checked counts as info, and the last line says how much it was; run it as root to see all.
    Doctor(doctor::Arguments),
    /// The key: its generations, and whether it is on
    #[command(subcommand)]
    Key(key::Command),
    /// The roots that open the key's generations
    #[command(subcommand)]
    Roots(roots::Command),
    /// What stands in the cluster's etcd
    #[command(subcommand)]
    Etcd(etcd::Command),
    /// Backups of etcd that a deletion is held against
    #[command(subcommand)]
    Backup(backup::Command),
    /// The store, after it was put back from a backup
    #[command(subcommand)]
    Store(store::Command),
    /// Rebuild the store from an etcd, its snapshot or a rescue file, and one durable root
    Recover(Box<recover::Arguments>),
    /// The recovery key, kept offline
    #[command(subcommand)]
    Recovery(recovery::Command),
    /// The tokens of the PKCS#11 module
    #[command(subcommand)]
    Token(token::Command),
    /// The TPM 2.0 that holds the CMKs, where custody.kind is "tpm"
    #[command(subcommand)]
    Tpm(tpm::Command),
    /// The cloud key of the cloud profile
    #[cfg(feature = "cloud")]
    #[command(subcommand)]
    Upstream(upstream::Command),
    /// The lease on the cloud key's offline copy
    #[command(subcommand)]
    Lease(lease::Command),
    /// The running daemon's custodian: the process that holds the device and its PIN or auth value
    #[command(name = "custodian")]
    Custodian(custodian::Arguments),
    /// The audit trail
    #[command(subcommand)]
    Audit(audit::Command),
    /// The configuration
    #[command(subcommand)]
    Config(config_check::Command),
    /// Completions for a shell: `source <(keystead completions bash)`
    Completions(shell::CompletionsArguments),
    /// Write the manual pages
    Man(shell::ManArguments),
    /// Speak the KMS v2 protocol to the daemon, as kube-apiserver does; for debugging
    Kms(kms::Arguments),
    /// The process that serves requests; started by `serve`
    #[command(hide = true)]
    Server,
}

/// Parses the arguments and runs the command.
pub fn run() -> ExitCode {
    failpoint::arm();
    let matches = match with_exit_codes(Cli::command()).try_get_matches() {
        Ok(matches) => matches,
        // Help and version come this way, too, with 0.
        Err(error) => return exit::usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    match cli.command {
        Command::Server => return internal::server(),
        Command::Custodian(custodian::Arguments { command: None }) => return internal::custodian(),
        _ => {}
    }
    let format = cli.global.output;
    match dispatch(cli).and_then(|report| report.print(format)) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.print(format),
    }
}

fn dispatch(cli: Cli) -> Result<Report, Failure> {
    let config = cli.global.config.as_deref();
    match cli.command {
        Command::Init(arguments) => init::run(&arguments, config),
        Command::Serve => serve::run(config),
        Command::Status(arguments) => status::run(&arguments, config, cli.global.output),
        Command::Reload => reload::run(config),
        Command::Doctor(arguments) => doctor::run(&arguments, config),
        Command::Key(command) => key::run(&command, config, cli.global.output),
        Command::Roots(command) => roots::run(&command, config, cli.global.output),
        Command::Etcd(command) => etcd::run(&command, config, cli.global.output),
        Command::Backup(command) => backup::run(&command, config, cli.global.output),
        Command::Store(command) => store::run(&command, config, cli.global.output),
        Command::Recover(arguments) => recover::run(&arguments, config, cli.global.output),
        Command::Recovery(command) => recovery::run(&command, config),
        Command::Token(command) => token::run(&command, config),
        Command::Tpm(command) => tpm::run(&command, config, cli.global.output),
        Command::Audit(command) => audit::run(&command, config),
        #[cfg(feature = "cloud")]
        Command::Upstream(command) => upstream::run(&command, config, cli.global.output),
        Command::Lease(command) => lease::run(&command, config),
        Command::Config(command) => config_check::run(&command, config),
        Command::Completions(arguments) => Ok(shell::completions(&arguments, Cli::command())),
        Command::Man(arguments) => shell::man(&arguments, with_exit_codes(Cli::command())),
        Command::Kms(arguments) => kms::run(&arguments, config, cli.global.output),
        Command::Custodian(custodian::Arguments { command: Some(command) }) => custodian::run(&command, config),
        // Both were taken before.
        Command::Server | Command::Custodian(custodian::Arguments { command: None }) => Ok(Report::silent()),
    }
}

/// Each command's help ends with the exit codes, for whoever writes a script.
fn with_exit_codes(command: clap::Command) -> clap::Command {
    command.after_help(exit::HELP).mut_subcommands(with_exit_codes)
}

/// The configuration, for every command that needs it.
fn settings(config: Option<&Path>) -> Result<(Source, Settings), Failure> {
    Ok(Settings::load(config)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn definition_of_the_commands_is_sound() {
        with_exit_codes(Cli::command()).debug_assert();
    }

    #[test]
    fn commands_of_the_reference_are_accepted() {
        for line in [
            "keystead init --no-recovery",
            "keystead init --recovery key.pem --if-needed",
            "keystead init --no-recovery --abandon-lost-store",
            "keystead serve --config a.toml",
            "keystead status --output json",
            "keystead status --watch --interval 500ms",
            "keystead reload --output json",
            "keystead doctor --only sockets --only store --encryption-config e.yaml",
            "keystead --output json key list",
            "keystead key describe",
            "keystead key describe 3",
            "keystead key rotate --yes",
            "keystead key rotate --yes --force because",
            "keystead key schedule-deletion --generation 3 --wait 7d",
            "keystead key schedule-deletion --generation 3 --confirm ks1.a.3.abababababababababababababababab",
            "keystead key cancel-deletion --generation 3",
            "keystead key disable",
            "keystead key disable --reason INC-42 --yes",
            "keystead key enable --yes",
            "keystead roots list",
            "keystead roots rescue --to public.pem --out rescue.txt",
            "keystead etcd scan --snapshot a.db --skip-hash-check",
            "keystead etcd scan --etcd http://127.0.0.1:2379 --prefix /registry/ --no-record",
            "keystead backup register --name friday --snapshot a.db --skip-hash-check",
            "keystead backup register --name friday --generations 1,2",
            "keystead backup list",
            "keystead backup forget --name friday",
            "keystead recover --snapshot a.db --no-recovery --replace-store",
            "keystead recover --snapshot a.db --private p.pem --dry-run --provider edge --skip-hash-check",
            "keystead recover --etcd https://a:2379 --etcd-cacert a --etcd-cert b --etcd-key c --etcd-timeout 5 --dry-run",
            "keystead recover --etcd unix:///a --rescue rescue.txt --prefix /a --prefix /b --no-recovery",
            "keystead recover --rescue rescue.txt --private p.pem --recovery public.pem",
            "keystead store restore --accept-rollback",
            "keystead store restore --accept-rollback --yes --no-recovery --snapshot a.db old.store",
            "keystead store restore --accept-rollback --recovery a.pem --etcd http://127.0.0.1:2379",
            "keystead recovery keygen --out private.pem --public-out public.pem",
            "keystead recovery verify --private private.pem",
            "keystead recovery drill --private private.pem --in a.json --in b.json",
            "keystead token list",
            "keystead tpm info",
            "keystead tpm provision --owner-auth-file a --out b",
            "keystead audit query",
            "keystead audit query --since 1h --action rotate --output json",
            "keystead audit query --until 2d --uid 0 --generation 3 --outcome ok --limit 0",
            "keystead audit verify",
            "keystead audit verify --folder files",
            "keystead config check",
            "keystead completions zsh",
            "keystead man --out pages",
            "keystead lease extend --grant grant.txt",
            "keystead lease grant --key private.pem --status status.json --for 72h --out grant.txt",
            "keystead lease grant --key p.pem --key-id ks1.a.1.abababababababababababababababab --epoch 4 --for 7d --out g",
            #[cfg(feature = "cloud")]
            "keystead upstream check",
            "keystead kms status",
            "keystead kms --socket /run/kms.sock encrypt --in a --out b",
            "keystead kms decrypt",
            "keystead kms bench --seconds 1 --concurrency 8 --operation decrypt",
            "keystead server",
            "keystead custodian",
            "keystead custodian restart",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn init_without_a_word_on_recovery_is_a_usage_error() {
        assert_eq!(parse("keystead init").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
        assert_eq!(parse("keystead init --recovery a --no-recovery").unwrap_err().kind(), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn recover_without_a_source_or_a_word_on_recovery_is_a_usage_error() {
        for line in [
            "keystead recover --no-recovery",
            "keystead key rotate --force",
            "keystead key schedule-deletion 3",
            "keystead key schedule-deletion --generation 3 --wait 7",
            "keystead key cancel-deletion",
            "keystead backup register --name friday",
            "keystead backup register --name friday --snapshot a --generations 1",
            "keystead backup register --name friday --generations one",
            "keystead store restore",
            "keystead store restore --yes",
            "keystead store restore --accept-rollback --no-recovery --recovery a.pem",
            "keystead etcd scan",
            "keystead etcd scan --snapshot a --etcd unix:///a",
            "keystead recover --snapshot a",
            "keystead recover --snapshot a --dry-run --no-recovery",
            "keystead recover --snapshot a --etcd http://127.0.0.1:1 --dry-run",
            "keystead recover --etcd https://a:1 --etcd-cert a --etcd-key b --dry-run",
            "keystead recover --etcd https://a:1 --etcd-cacert c --etcd-cert a --dry-run",
            "keystead recover --rescue a --etcd-cacert c --dry-run",
            "keystead recover --etcd http://127.0.0.1:1 --etcd-timeout 0 --dry-run",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn plaintext_is_not_taken_from_the_command_line() {
        for line in
            ["keystead kms encrypt secret", "keystead kms encrypt --plaintext secret", "keystead kms decrypt abc"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_command_s_help_lists_the_exit_codes() {
        fn visit(command: &clap::Command) {
            assert!(command.get_after_help().is_some_and(|help| help.to_string().contains("Exit codes")));
            command.get_subcommands().for_each(visit);
        }
        visit(&with_exit_codes(Cli::command()));
    }
}

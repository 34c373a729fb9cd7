//! The key commands against an admin service of the tests' own, on a real unix socket.

use keystead_wire::admin::v1::admin_server::{Admin, AdminServer};
use keystead_wire::admin::v1::{
    DisableRequest, DisableResponse, Disabled, EnableRequest, EnableResponse, GetStatusRequest, GetStatusResponse,
    ListGenerationsResponse, Root, RotateProgress, RotateRequest, Scan,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::cli::exit::Exit;
use clap::Parser;

/// Answers as told: every call fails with `refuse`, if set; a rotation sends `steps`, the last with a generation.
#[derive(Clone, Default)]
struct Fake {
    refuse: Option<Code>,
    steps: Vec<&'static str>,
    breaks: bool,
    availability: &'static str,
}

impl Fake {
    fn admitted(&self) -> Result<(), Status> {
        self.refuse.map_or(Ok(()), |code| Err(Status::new(code, "as the test wants")))
    }
}

fn generation(number: u64, state: &str) -> Generation {
    Generation {
        number,
        key_id: format!("ks1.default.{number}.{}", "ab".repeat(16)),
        state: state.into(),
        created: 1_763_816_645,
        activated: 0,
        loaded: state == "active",
        roots: vec![Root { kind: "pkcs11".into(), id: "0a".into(), construction: "aes-gcm".into() }],
        encrypts: 1,
        decrypts: 2,
        objects: Some(120),
        ..Generation::default()
    }
}

#[tonic::async_trait]
impl Admin for Fake {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        self.admitted()?;
        let scan = Scan { recorded: 1_763_816_645, ..Scan::default() };
        Ok(Response::new(GetStatusResponse { scan: Some(scan), ..GetStatusResponse::default() }))
    }

    async fn list_generations(
        &self,
        _: Request<ListGenerationsRequest>,
    ) -> Result<Response<ListGenerationsResponse>, Status> {
        self.admitted()?;
        let generations = vec![generation(1, "retired"), generation(2, "active")];
        Ok(Response::new(ListGenerationsResponse { generations }))
    }

    async fn disable(&self, request: Request<DisableRequest>) -> Result<Response<DisableResponse>, Status> {
        self.admitted()?;
        let reason = request.into_inner().reason;
        let disabled = Disabled { since: 1_763_816_645, uid: Some(7), reason, recorded: true, ..Disabled::default() };
        Ok(Response::new(DisableResponse { changed: true, disabled: Some(disabled) }))
    }

    async fn enable(&self, _: Request<EnableRequest>) -> Result<Response<EnableResponse>, Status> {
        self.admitted()?;
        let availability = self.availability.into();
        Ok(Response::new(EnableResponse { changed: true, availability, reason: String::new() }))
    }

    async fn rotate(&self, _: Request<RotateRequest>) -> Result<Response<BoxStream<RotateProgress>>, Status> {
        self.admitted()?;
        let last = self.steps.len().saturating_sub(1);
        let complete = !self.breaks;
        let steps = self.steps.clone().into_iter().enumerate().map(move |(index, step)| {
            let generation = (complete && index == last).then(|| generation(3, "active"));
            Ok(RotateProgress { step: step.into(), generation })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(steps))))
    }
}

async fn daemon(fake: Fake) -> (tempfile::TempDir, Daemon) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    tokio::spawn(tonic::transport::Server::builder().add_service(AdminServer::new(fake)).serve_with_incoming(incoming));
    let daemon = Daemon::open(&socket).await.unwrap();
    (folder, daemon)
}

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

async fn run_line(line: &str, fake: Fake) -> Result<Report, Failure> {
    let (_folder, daemon) = daemon(fake).await;
    match Line::parse_from(format!("key {line}").split_whitespace()).command {
        Command::List => list::report(daemon).await,
        Command::Describe(arguments) => describe::report(&arguments, daemon).await,
        Command::Rotate(arguments) => rotate::report(&arguments, daemon, Format::Text).await,
        Command::ScheduleDeletion(arguments) => deletion::schedule(&arguments, daemon).await,
        Command::CancelDeletion(arguments) => deletion::cancel(&arguments, daemon).await,
        Command::Disable(arguments) => switch::disable(&arguments, daemon).await,
        Command::Enable(arguments) => switch::enable(&arguments, daemon).await,
    }
}

#[tokio::test]
async fn list_shows_whole_key_ids_in_eighty_columns() {
    let report = run_line("list", Fake::default()).await.unwrap();
    let key_id = generation(2, "active").key_id;
    assert!(report.text.contains(&key_id), "{}", report.text);
    assert!(report.text.contains("By the scan of 2025-11-22T13:04:05Z:"), "{}", report.text);
    assert!(report.text.contains("generation 2: 120 objects"), "{}", report.text);
    assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
    assert_eq!(report.json["generations"][0]["created"], "2025-11-22T13:04:05Z");
    assert_eq!(report.json["generations"][0]["activated"], serde_json::Value::Null);
}

#[tokio::test]
async fn describe_finds_by_number_by_key_id_and_the_active_one() {
    let retired = generation(1, "retired").key_id;
    for (wanted, number) in [("1", 1), (retired.as_str(), 1), ("active", 2), ("", 2)] {
        let report = run_line(&format!("describe {wanted}"), Fake::default()).await.unwrap();
        assert_eq!(report.json["number"], number, "{wanted}");
        assert!(report.text.contains("pkcs11 by aes-gcm"), "{}", report.text);
    }
    assert_eq!(run_line("describe 9", Fake::default()).await.unwrap_err().exit, Exit::Failed);
}

#[tokio::test]
async fn rotate_follows_the_steps_to_the_new_generation() {
    let fake = Fake { steps: vec!["prepared", "verified", "activated"], ..Fake::default() };
    let report = run_line("rotate --yes", fake).await.unwrap();
    assert_eq!(report.json["steps"], serde_json::json!(["prepared", "verified", "activated"]));
    assert_eq!(report.json["generation"]["number"], 3);
    assert!(report.text.contains("kubectl"), "{}", report.text);
}

#[tokio::test]
async fn rotation_that_ends_without_a_generation_is_a_failure_that_says_to_look_first() {
    let fake = Fake { steps: vec!["prepared"], breaks: true, ..Fake::default() };
    let failure = run_line("rotate --yes", fake).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    assert!(failure.next.unwrap().contains("key list"));
}

#[tokio::test]
async fn disabled_key_is_shown_with_its_reason_and_enabling_that_serves_nothing_has_its_code() {
    let off = run_line("disable --yes --reason INC-1", Fake::default()).await.unwrap();
    assert!(off.text.contains("user 7") && off.text.contains("INC-1"), "{}", off.text);
    assert!(off.text.lines().all(|line| line.chars().count() <= 80) || off.text.contains("kube-apiserver"));
    assert!(off.text.lines().all(|line| line.chars().count() <= 80), "{}", off.text);
    assert_eq!((&off.json["disabled"]["uid"], &off.json["disabled"]["recorded"]), (&7.into(), &true.into()));
    for (availability, exit) in [("online", Exit::Done), ("degraded", Exit::Done), ("revoked", Exit::NotServing)] {
        let on = run_line("enable --yes", Fake { availability, ..Fake::default() }).await.unwrap();
        assert_eq!((on.exit, &on.json["availability"]), (exit, &availability.into()), "{}", on.text);
    }
}

#[tokio::test]
async fn refusals_have_the_exit_code_of_their_kind() {
    for (code, exit) in [
        (Code::PermissionDenied, Exit::Refused),
        (Code::FailedPrecondition, Exit::Refused),
        (Code::Unavailable, Exit::NotServing),
        (Code::Unimplemented, Exit::Refused),
    ] {
        for line in ["list", "describe", "rotate --yes", "disable --yes", "enable --yes"] {
            let fake = Fake { refuse: Some(code), ..Fake::default() };
            assert_eq!(run_line(line, fake).await.unwrap_err().exit, exit, "{line} {code:?}");
        }
    }
}

#[tokio::test]
async fn deletion_without_terminal_or_confirmation_asks_the_daemon_nothing() {
    let failure = run_line("schedule-deletion --generation 1", Fake::default()).await.unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.next.unwrap().contains("--confirm"));
}

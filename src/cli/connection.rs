//! Reaching the daemon over its sockets, and what its refusals mean for whoever typed the command.

use std::error::Error;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::exit::{Exit, Failure};

/// For one answer. A daemon answers from memory; only a generation it has yet to load takes a device round trip.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A connection to one socket of the daemon.
#[derive(Debug, Clone)]
pub struct Connection {
    pub channel: Channel,
    socket: PathBuf,
}

/// A runtime for a command that waits for one answer at a time.
pub fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))
}

impl Connection {
    pub async fn open(socket: &Path) -> Result<Self, Failure> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority that kube-apiserver sends; it is not looked at.
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(Duration::from_secs(3))
            .connect_with_connector(connector)
            .await
            .map_err(|error| unreachable(socket, &error))?;
        Ok(Self { channel, socket: socket.to_owned() })
    }

    /// One answer, or what its absence means.
    pub async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.within(ANSWER_WITHIN, call).await.map(tonic::Response::into_inner)
    }

    pub async fn within<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.refusal(&status)),
            Err(_) => {
                let patience = patience.as_secs();
                let message = format!("the daemon did not answer within {patience} s on {}", self.socket.display());
                Err(Failure::new(Exit::Unreachable, message).next("`keystead doctor` and the daemon's log say more"))
            }
        }
    }

    /// A gRPC error as an exit code with a remedy.
    pub fn refusal(&self, status: &Status) -> Failure {
        // Only an error that arose on this side has a source: the daemon went away or speaks something else.
        if status.source().is_some() {
            let message = format!("the connection to {} broke: {}", self.socket.display(), status.message());
            return Failure::new(Exit::Unreachable, message).next("is the daemon running? `keystead doctor`");
        }
        let message = match status.message() {
            "" => format!("the daemon answered {:?}", status.code()),
            text => text.to_owned(),
        };
        let failure = |exit| Failure::new(exit, message.clone());
        match status.code() {
            Code::PermissionDenied => failure(Exit::Refused).next(
                "run it as a user who may, or admit this one: [roles], or allow_uids and allow_gids of that socket",
            ),
            Code::Unavailable => failure(Exit::NotServing).next("`keystead doctor` says why, and what to do"),
            Code::Unimplemented => Failure::new(Exit::Refused, "the daemon does not know this command")
                .next("is it of the same version, and the socket the right one? `keystead status`"),
            _ => failure(Exit::Refused),
        }
    }
}

fn unreachable(socket: &Path, error: &tonic::transport::Error) -> Failure {
    let shown = socket.display();
    let failure = |message| Failure::new(Exit::Unreachable, message);
    match io_cause(error).map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => failure(format!("no daemon listens: {shown} does not exist"))
            .next("start it with `keystead serve`, or name its config file with --config"),
        Some(io::ErrorKind::ConnectionRefused) => {
            failure(format!("no daemon listens: {shown} was left behind")).next("start it with `keystead serve`")
        }
        Some(io::ErrorKind::PermissionDenied) => failure(format!("this user may not open {shown}"))
            .next("run it as the daemon's user or root, or see `mode` and `group` of that socket in the config file"),
        _ => {
            let cause = Failure::from_error(Exit::Unreachable, error).message;
            failure(format!("cannot connect to {shown}: {cause}")).next("`keystead doctor` looks at the sockets")
        }
    }
}

fn io_cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn absent_and_abandoned_sockets_say_that_no_daemon_runs() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a.sock");
        let failure = Connection::open(&socket).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("does not exist"), "{failure:?}");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let failure = Connection::open(&socket).await.unwrap_err();
        assert!(failure.message.contains("left behind"), "{failure:?}");
        assert!(failure.next.unwrap().contains("keystead serve"));
    }

    #[tokio::test]
    async fn peer_that_is_no_daemon_is_unreachable() {
        use keystead_wire::admin::v1::GetStatusRequest;
        use keystead_wire::admin::v1::admin_client::AdminClient;
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-other\r\n").await;
            }
        });
        let outcome = async {
            let connection = Connection::open(&socket).await?;
            connection.answer(AdminClient::new(connection.channel.clone()).get_status(GetStatusRequest {})).await
        };
        assert_eq!(outcome.await.unwrap_err().exit, Exit::Unreachable);
    }
}

//! Sockets that the service manager made for us (sd_listen_fds(3)), by the names `kms` and `admin`.

use std::io;

use super::inherited;
use crate::rpc::socket::{ListeningSocket, SocketError};

/// `None`: not passed, so bind it.
#[derive(Debug, Default)]
pub struct ActivatedSockets {
    pub kms: Option<ListeningSocket>,
    pub admin: Option<ListeningSocket>,
}

#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    #[error("the sockets that the service manager passed cannot be taken")]
    Descriptors(#[from] io::Error),
    #[error("the socket {name:?} of the service manager cannot be used")]
    Socket { name: String, source: SocketError },
    #[error(
        "the service manager passed a socket named {name:?}: set FileDescriptorName= to `kms` or `admin`, each once"
    )]
    Name { name: String },
}

/// Takes them. Call it once, before anything else opens files.
pub fn take() -> Result<ActivatedSockets, ActivationError> {
    let mut sockets = ActivatedSockets::default();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        let place = match name.as_str() {
            "kms" => &mut sockets.kms,
            "admin" => &mut sockets.admin,
            // Serving the wrong API on a socket, or none on one that clients use, is worse than not starting.
            _ => return Err(ActivationError::Name { name }),
        };
        if place.is_some() {
            return Err(ActivationError::Name { name });
        }
        let socket = ListeningSocket::adopt(inherited::take(number)?)
            .map_err(|source| ActivationError::Socket { name, source })?;
        *place = Some(socket);
    }
    Ok(sockets)
}

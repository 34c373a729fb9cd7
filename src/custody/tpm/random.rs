//! Random bytes for keys: the TPM's generator mixed with the kernel's, so that either alone being weak does no harm.

use zeroize::Zeroizing;

use super::connection::Connection;
use super::failure::Failure;

/// The exclusive-or of two independent sources is at least as good as the better one.
pub(super) fn mixed(connection: &mut Connection) -> Result<Zeroizing<[u8; 32]>, Failure> {
    let mut bytes = kernel()?;
    let from_tpm = connection.random()?;
    if from_tpm.len() != bytes.len() {
        return Err(Failure::device("the TPM gave fewer random bytes than asked for"));
    }
    bytes.iter_mut().zip(from_tpm.iter()).for_each(|(byte, other)| *byte ^= other);
    Ok(bytes)
}

pub(super) fn kernel() -> Result<Zeroizing<[u8; 32]>, Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|error| Failure::device(format!("the kernel gave no random bytes: {error}")))?;
    Ok(bytes)
}

//! Random bytes for keys and IVs: the token's mixed with the kernel's, so that either alone being weak does no harm.

use cryptoki::error::{Error, RvError};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::session::Session;

/// The exclusive-or of two independent sources is at least as good as the better one. A token without a random source
/// leaves the kernel's; one that has one and fails is a failure.
pub(super) fn mixed<const N: usize>(session: &Session) -> Result<Zeroizing<[u8; N]>, Failure> {
    let mut bytes = Zeroizing::new([0; N]);
    match session.call().generate_random_slice(bytes.as_mut_slice()) {
        Ok(()) | Err(Error::Pkcs11(RvError::RandomNoRng | RvError::FunctionNotSupported, _)) => {}
        Err(error) => return Err(error.into()),
    }
    let kernel = kernel::<N>()?;
    bytes.iter_mut().zip(kernel.iter()).for_each(|(byte, other)| *byte ^= other);
    Ok(bytes)
}

pub(super) fn kernel<const N: usize>() -> Result<Zeroizing<[u8; N]>, Failure> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|error| Failure::device(format!("the kernel gave no random bytes: {error}")))?;
    Ok(bytes)
}

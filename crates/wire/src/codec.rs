//! How messages are read and written: protobuf, through buffers of the size that messages have.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// A request or an answer with its annotation. Longer messages grow their buffer.
const USUAL_LEN: usize = 1 << 10;
/// tonic's own: bytes after which a stream of messages yields.
const YIELD_AFTER: usize = 32 << 10;

/// [`ProstCodec`] with small buffers. tonic's own take 8 KiB for each message, and freed memory is zeroed: two of them a
/// request cost more than the cipher, and push everything else out of the first-level cache.
#[derive(Debug, Clone)]
pub struct SmallMessages<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallMessages<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallMessages<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(USUAL_LEN, YIELD_AFTER))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(USUAL_LEN, YIELD_AFTER))
    }
}

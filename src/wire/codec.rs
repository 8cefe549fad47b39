//! How messages become bytes and bytes messages, for servers and clients.
//!
//! tonic's own codec sets 8 KiB aside for each message that comes and each that goes. Most of etcd's are
//! some hundred bytes long, and what a message is about, its keys and values, is not copied out of it:
//! the 8 KiB would be kept as long as one of them waits for a database or a watcher. Here a buffer is as
//! large as what is in it.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// Bytes that are set aside before the length of a message is known. The answer to a write is not longer.
const SHORT_BYTES: usize = 128;

/// Bytes of a stream's messages that are sent together, at most: tonic's default.
const TOGETHER_BYTES: usize = 32 << 10;

/// Encodes `T` and decodes `U` as protobuf, in buffers that fit.
#[derive(Clone, Debug)]
pub struct Fitting<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Fitting<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Fitting<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = FittingEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        FittingEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        // The first frame makes room for itself, and has the length of the message in front.
        ProstDecoder::new(BufferSettings::new(0, TOGETHER_BYTES))
    }
}

/// The encoder of [`Fitting`].
#[derive(Clone, Debug)]
pub struct FittingEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for FittingEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        let encoded = item.encode(buf);
        encoded.map_err(|err| Status::internal(err.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(SHORT_BYTES, TOGETHER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, Bytes, BytesMut};
    use http_body_util::Full;
    use tonic::codec::Streaming;

    use super::*;
    use crate::proto::etcdserverpb::PutRequest;

    #[tokio::test]
    async fn a_value_keeps_no_more_than_its_message() {
        let message = PutRequest {
            key: Bytes::from_static(b"key"),
            value: vec![7; 300].into(),
            ..PutRequest::default()
        };
        let len = message.encoded_len();
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(len.try_into().unwrap());
        message.encode(&mut framed).unwrap();

        let decoder = Fitting::<PutRequest, PutRequest>::default().decoder();
        let mut stream = Streaming::new_request(decoder, Full::new(framed.freeze()), None, None);
        let PutRequest { key, value, .. } = stream.message().await.unwrap().unwrap();
        drop((stream, key));
        let kept = value.try_into_mut().unwrap().capacity();
        assert!((300..2 * len).contains(&kept), "{kept} bytes for {len}");
    }
}

//! A client of the KV service that takes little of the processor, which it shares with what is measured.
//!
//! Of HTTP/2 it speaks what unary calls need (RFC 9113): its headers index nothing, answers are told by their
//! frames, what the server says in headers is not looked at (an answer without a message is a failure), and
//! all that has come up meanwhile is sent at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;
use segue::proto::etcdserverpb::{
    PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
/// What a peer takes that has not said otherwise.
const FRAME_BYTES_MAX: usize = 16_384;
/// Bytes that may be sent before the server has made room for more.
const WINDOW_BYTES: i64 = 65_535;
const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
/// The server is told of room when so many bytes have come.
const ROOM_EVERY: u32 = 1 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const INITIAL_WINDOW_SIZE: u16 = 4;

/// A connection. Clones share it.
#[derive(Clone)]
pub struct Kv(Arc<Connection>);

struct Connection {
    /// Whom requests are for.
    authority: String,
    state: Mutex<State>,
    /// There is something to send.
    due: Notify,
}

#[derive(Default)]
struct State {
    out: Vec<u8>,
    next_stream: u32,
    calls: HashMap<u32, Call>,
    window: i64,
}

struct Call {
    answer: BytesMut,
    done: oneshot::Sender<Bytes>,
}

impl Kv {
    /// A connection to whatever listens at `address`.
    pub async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await;
        let stream = stream.unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_nodelay(true).expect("a socket takes it");
        let mut state = State {
            next_stream: 1,
            window: WINDOW_BYTES,
            ..State::default()
        };
        state.out.extend_from_slice(PREFACE);
        let mut settings = Vec::new();
        settings.put_u16(INITIAL_WINDOW_SIZE);
        settings.put_u32(WINDOW_BYTES_MAX);
        frame(&mut state.out, SETTINGS, 0, 0, &settings);
        let room = WINDOW_BYTES_MAX - u32::try_from(WINDOW_BYTES).expect("positive");
        frame(&mut state.out, WINDOW_UPDATE, 0, 0, &room.to_be_bytes());
        let connection = Arc::new(Connection {
            authority: address.to_owned(),
            state: Mutex::new(state),
            due: Notify::new(),
        });
        tokio::task::spawn(serve(Arc::downgrade(&connection), stream));
        Self(connection)
    }

    /// Writes a key.
    pub async fn put(&self, request: &PutRequest) -> PutResponse {
        self.call("/etcdserverpb.KV/Put", request).await
    }

    /// Reads keys.
    pub async fn range(&self, request: &RangeRequest) -> RangeResponse {
        self.call("/etcdserverpb.KV/Range", request).await
    }

    /// Runs a transaction.
    pub async fn txn(&self, request: &TxnRequest) -> TxnResponse {
        self.call("/etcdserverpb.KV/Txn", request).await
    }

    async fn call<R: Message + Default>(&self, path: &str, request: &impl Message) -> R {
        let (done, answer) = oneshot::channel();
        self.0.begin(path, request, done);
        self.0.due.notify_one();
        let mut answer = answer.await.expect("a request is answered");
        assert!(answer.len() >= 5, "{path} has failed");
        answer.advance(5);
        R::decode(answer).expect("an answer of the API")
    }
}

impl Connection {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, path: &str, request: &impl Message, done: oneshot::Sender<Bytes>) {
        let mut headers = Vec::with_capacity(128);
        // Indexed: `:method: POST`, `:scheme: http`.
        headers.extend_from_slice(&[0x83, 0x86]);
        // Literals without indexing, of names in the static table (`:path`, `:authority`, `content-type`)
        // and of one that is not.
        literal(&mut headers, &[0x04], path);
        literal(&mut headers, &[0x01], &self.authority);
        literal(&mut headers, &[0x0f, 0x10], "application/grpc");
        literal(&mut headers, b"\x00\x02te", "trailers");
        let length = request.encoded_len();
        let mut message = Vec::with_capacity(5 + length);
        message.put_u8(0);
        message.put_u32(u32::try_from(length).expect("a short request"));
        request.encode(&mut message).expect("there is room");
        assert!(message.len() <= FRAME_BYTES_MAX, "requests are short");

        let mut state = self.state();
        let stream = state.next_stream;
        state.next_stream += 2;
        let answer = BytesMut::new();
        state.calls.insert(stream, Call { answer, done });
        state.window -= i64::try_from(message.len()).expect("a short request");
        assert!(state.window > 0, "the server makes room in time");
        frame(&mut state.out, HEADERS, END_HEADERS, stream, &headers);
        frame(&mut state.out, DATA, END_STREAM, stream, &message);
    }

    /// Takes what the server has sent; answers by how many bytes it used its window.
    fn take(&self, received: &mut BytesMut) -> u32 {
        let mut used = 0;
        let mut state = self.state();
        while received.len() >= FRAME_HEADER_BYTES {
            let length = usize::from(received[0]) << 16
                | usize::from(received[1]) << 8
                | usize::from(received[2]);
            if received.len() < FRAME_HEADER_BYTES + length {
                break;
            }
            let mut header = received.split_to(FRAME_HEADER_BYTES);
            header.advance(3);
            let (kind, flags, stream) = (header.get_u8(), header.get_u8(), header.get_u32());
            let mut payload = received.split_to(length);
            match kind {
                DATA => {
                    used += u32::try_from(length).expect("a frame is short");
                    if flags & PADDED != 0 {
                        let padding = usize::from(payload.get_u8());
                        payload.truncate(payload.len() - padding);
                    }
                    let call = state.calls.get_mut(&stream).expect("what was asked for");
                    if call.answer.is_empty() {
                        call.answer = payload;
                    } else {
                        call.answer.unsplit(payload);
                    }
                }
                SETTINGS if flags & ACK == 0 => frame(&mut state.out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame(&mut state.out, PING, ACK, 0, &payload),
                WINDOW_UPDATE if stream == 0 => state.window += i64::from(payload.get_u32()),
                // A server in Go ends streams anew whose answer was sent before it had looked at the end of
                // the request.
                RST_STREAM if !state.calls.contains_key(&stream) => {}
                RST_STREAM | GOAWAY => panic!("the server ends a request: {payload:?}"),
                _ => {}
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                let call = state.calls.remove(&stream).expect("what was asked for");
                // Whoever asked may be gone when a measurement is over.
                let _ = call.done.send(call.answer.freeze());
            }
        }
        used
    }
}

/// Sends and receives for as long as somebody has the connection.
async fn serve(connection: std::sync::Weak<Connection>, stream: TcpStream) {
    let (mut reader, mut writer) = stream.into_split();
    let mut received = BytesMut::with_capacity(1 << 16);
    let mut used = 0;
    let mut out = Vec::new();
    loop {
        let Some(shared) = connection.upgrade() else {
            return;
        };
        std::mem::swap(&mut shared.state().out, &mut out);
        if !out.is_empty() {
            if writer.write_all(&out).await.is_err() {
                return;
            }
            out.clear();
        }
        received.reserve(1 << 16);
        tokio::select! {
            read = reader.read_buf(&mut received) => match read {
                Ok(bytes) if bytes > 0 => {
                    used += shared.take(&mut received);
                    if used >= ROOM_EVERY {
                        let room = used.to_be_bytes();
                        frame(&mut shared.state().out, WINDOW_UPDATE, 0, 0, &room);
                        used = 0;
                    }
                    // Those that were answered ask for the next first, so that it is sent at once.
                    tokio::task::yield_now().await;
                }
                // Those who wait learn it from their calls.
                _ => {
                    shared.state().calls.clear();
                    return;
                }
            },
            () = shared.due.notified() => {}
        }
    }
}

fn literal(headers: &mut Vec<u8>, name: &[u8], value: &str) {
    headers.extend_from_slice(name);
    // Longer ones take more than one byte for their length.
    assert!(value.len() < 0x7f, "a short value");
    headers.push(u8::try_from(value.len()).expect("a short value"));
    headers.extend_from_slice(value.as_bytes());
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a frame is short");
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.put_u32(stream);
    out.extend_from_slice(payload);
}

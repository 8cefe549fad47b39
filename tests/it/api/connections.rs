//! Connections on which nothing is asked.

use std::sync::Arc;
use std::time::Duration;

use segue::store::memory::Memory;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::api::Api;

const SOON: Duration = Duration::from_secs(20);

/// What a client of HTTP/2 says first, with settings that are empty.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn impatient(greeting_within: Duration) -> Api {
    let store = Arc::new(Memory::new());
    Api::start_with(store, |config| config.greeting_within = greeting_within).await
}

async fn says(api: &Api, said: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(api.address()).await.unwrap();
    stream.write_all(said).await.unwrap();
    stream
}

/// Waits until the server has ended the connection; what it had said before.
async fn ended(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut answer)).await;
    end.expect("ended in time").unwrap();
    answer
}

#[tokio::test]
async fn who_does_not_say_which_protocol_it_speaks_is_not_waited_for() {
    let api = impatient(Duration::from_millis(50)).await;
    for said in [&b""[..], b"P", &PREFACE[..23]] {
        assert_eq!(ended(says(&api, said).await).await, b"");
    }
}

#[tokio::test]
async fn who_has_said_which_protocol_it_speaks_may_take_its_time() {
    let api = impatient(Duration::from_millis(500)).await;
    let mut first = says(&api, PREFACE).await;
    let mut second = says(&api, b"GET /version HTTP/1.1\r\nConn").await;
    // Later than they would have been ended.
    ended(says(&api, b"").await).await;

    second.write_all(b"ection: close\r\n\r\n").await.unwrap();
    let answer = ended(second).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("200 OK"), "{answer}");

    let ping = |flags: u8| [&[0, 0, 8, 6, flags, 0, 0, 0, 0][..], b"are you?"].concat();
    first.write_all(&ping(0)).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(&ping(1)) {
        let read = timeout(SOON, first.read_buf(&mut answer)).await;
        assert_ne!(read.expect("an answer in time").unwrap(), 0, "{answer:?}");
    }
}

/// Of a client that has vanished only the system can tell.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_system_asks_whether_silent_clients_are_still_there() {
    let api = Api::start(Arc::new(Memory::new())).await;
    let client = says(&api, b"P").await;
    let (local, remote) = (api.port(), client.local_addr().unwrap().port());
    let ends = format!(" 0100007F:{local:04X} 0100007F:{remote:04X} ");
    crate::support::eventually("the connection has a timer", async || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let socket = sockets.lines().find(|line| line.contains(&ends));
        // State, queues, and which timer runs: 2 is that of keep-alives.
        let has_timer =
            socket.is_some_and(|line| line.split_whitespace().nth(5).unwrap().starts_with("02:"));
        if has_timer {
            Ok(())
        } else {
            Err(socket.map(str::to_owned))
        }
    })
    .await;
}

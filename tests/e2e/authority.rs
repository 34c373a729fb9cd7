//! Clients that say something else than a host in `:authority`: kube-apiserver up to 1.31, and gRPC's C core.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use keystead_wire::kms::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use prost::Message;

use crate::daemon::{DEADLINE, Site, encrypt};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// HTTP/2 by hand, because no client library lets a caller say what old ones say.
struct RawClient {
    socket: UnixStream,
    stream: u32,
}

impl RawClient {
    fn connect(path: &Path) -> Self {
        let mut socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut client = Self { socket, stream: 1 };
        client.send(SETTINGS, 0, 0, &[]);
        client
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.socket.write_all(&frame).unwrap();
    }

    fn receive(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head).expect("the connection was closed");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        (head[3], head[4], u32::from_be_bytes(head[5..].try_into().unwrap()), payload)
    }

    /// One call under a given header block; panics if it is reset or fails.
    fn call<Answer: Message + Default>(&mut self, block: &[u8], request: &impl Message) -> Answer {
        let stream = self.stream;
        self.stream += 2;
        let message = request.encode_to_vec();
        let mut body = vec![0];
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
        self.send(HEADERS, END_HEADERS, stream, block);
        self.send(DATA, END_STREAM, stream, &body);
        let mut answer = Vec::new();
        loop {
            let (kind, flags, of, payload) = self.receive();
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]),
                RST_STREAM | GOAWAY => panic!("refused by frame {kind}: {payload:02x?}"),
                DATA if of == stream => answer.extend(payload),
                HEADERS if of == stream && flags & END_STREAM != 0 => break,
                _ => {}
            }
        }
        assert!(answer.len() >= 5, "no message was returned");
        Answer::decode(&answer[5..]).unwrap()
    }

    /// Status, Encrypt and Decrypt as grpc-go would encode them: everything inserted once, then referred to.
    fn round_trip(&mut self, authority: &[u8]) {
        let string = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        let path = |method: &str| [vec![0x44], string(&format!("/v2.KeyManagementService/{method}"))].concat();

        let block = [
            b"\x83\x86\x41".to_vec(),
            authority.to_vec(),
            path("Status"),
            vec![0x5f],
            string("application/grpc"),
            vec![0x40],
            string("te"),
            string("trailers"),
        ]
        .concat();
        let status: StatusResponse = self.call(&block, &StatusRequest {});
        assert_eq!(status.healthz, "ok");

        // The authority is the fourth youngest entry now, and so on.
        let block = [b"\x83\x86\xc1".to_vec(), path("Encrypt"), vec![0xc0, 0xbf]].concat();
        let request = EncryptRequest { plaintext: b"seed".to_vec(), uid: "uid".into() };
        let encrypted: EncryptResponse = self.call(&block, &request);
        assert_eq!(encrypted.key_id, status.key_id);

        let mut block = [b"\x83\x86\xc2".to_vec(), path("Decrypt"), vec![0xc1, 0xc0]].concat();
        let request = DecryptRequest {
            ciphertext: encrypted.ciphertext,
            uid: "uid".into(),
            key_id: encrypted.key_id,
            annotations: encrypted.annotations,
        };
        let decrypted: DecryptResponse = self.call(&block, &request);
        assert_eq!(decrypted.plaintext, b"seed");

        // From now on every field is an index, and 62 the path.
        block = b"\x83\x86\xc3\xbe\xc1\xc0".to_vec();
        for _ in 0..100 {
            let decrypted: DecryptResponse = self.call(&block, &request);
            assert_eq!(decrypted.plaintext, b"seed");
        }
    }
}

#[tokio::test]
async fn requests_with_any_authority_are_served() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let authorities: [(&str, &[u8]); 7] = [
        ("raw path", b"\x16/run/keystead/kms.sock"),
        // HPACK's Huffman code, as grpc-go and hyper write it.
        ("raw path, Huffman", b"\x90\x62\xcb\x6a\x63\xa9\x7d\x21\x25\x1c\x8c\x75\xa5\x0b\xa0\xe4\xeb"),
        ("escaped path", b"\x1c%2Frun%2Fkeystead%2Fkms.sock"),
        (
            "escaped path, Huffman",
            b"\x95\x54\x58\x6c\xb6\xa5\x45\x87\xa9\x7d\x21\x25\x1c\x8a\x8b\x0f\x5a\x50\xba\x0e\x4e\xbf",
        ),
        ("empty", b"\x00"),
        ("not even text", b"\x03\xff\xfe\x00"),
        ("a host", b"\x09localhost"),
    ];
    for (what, authority) in authorities {
        eprintln!("{what}");
        RawClient::connect(&site.kms_socket()).round_trip(authority);
    }
    assert!(daemon.stop().success());
}

/// What one client has in its table is not another's.
#[tokio::test]
async fn old_and_new_clients_are_served_side_by_side() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut modern = daemon.kms().await;
    let mut old = RawClient::connect(&site.kms_socket());
    let mut older = RawClient::connect(&site.kms_socket());
    old.round_trip(b"\x16/run/keystead/kms.sock");
    encrypt(&mut modern, b"seed").await;
    older.round_trip(b"\x00");
    encrypt(&mut modern, b"seed").await;
}

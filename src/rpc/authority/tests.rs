//! Against h2 itself, which is what must understand the result, and against bytes written by hand.

use std::collections::VecDeque;
use std::future::poll_fn;

use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const END_BOTH: u8 = 0x5;

/// What clients of old say, and hosts.
const AUTHORITIES: [&str; 6] =
    ["", "/run/keystead/kms.sock", "%2Frun%2Fkeystead%2Fkms.sock", "localhost", "127.0.0.1:80", "@"];

/// Gives one piece a read, then waits for ever or ends.
#[derive(Debug)]
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    ends: bool,
}

impl Pieces {
    fn ending(pieces: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect(), ends: true }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return if self.ends { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let rest = piece.split_off(piece.len().min(buffer.remaining()));
        buffer.put_slice(&piece);
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes whatever h2 answers.
impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Everything that comes out, and how it ended. Looks at what is held after every read.
fn edited(pieces: Pieces, buffer_bytes: usize) -> (Vec<u8>, io::Result<()>) {
    block_on(async {
        let mut stream = WithoutAuthority::new(pieces);
        let mut out = Vec::new();
        let mut buffer = vec![0; buffer_bytes];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return (out, Ok(())),
                Ok(read) => out.extend(&buffer[..read]),
                Err(error) => return (out, Err(error)),
            }
            assert!(stream.editor.held.bytes.len() <= frames::MAX_BLOCK_BYTES);
        }
    })
}

/// A source of choices that a seed decides.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

type Field = (String, String);

/// An HPACK encoder that uses every form there is, at random, with a table of its own.
struct Encoder {
    table: VecDeque<Field>,
    bytes: usize,
    limit: usize,
}

impl Encoder {
    fn new() -> Self {
        Self { table: VecDeque::new(), bytes: 0, limit: 4096 }
    }

    fn evict(&mut self, room: usize) {
        while !self.table.is_empty() && self.bytes + room > self.limit {
            let (name, value) = self.table.pop_back().unwrap();
            self.bytes -= name.len() + value.len() + 32;
        }
    }

    fn insert(&mut self, field: &Field) {
        let bytes = field.0.len() + field.1.len() + 32;
        self.evict(bytes);
        if bytes <= self.limit {
            self.bytes += bytes;
            self.table.push_front(field.clone());
        }
    }

    fn integer(block: &mut Vec<u8>, bits: u8, flags: u8, value: usize) {
        let mask = (1 << bits) - 1;
        if value < mask {
            return block.push(flags | value as u8);
        }
        block.push(flags | mask as u8);
        let mut rest = value - mask;
        while rest > 127 {
            block.push(rest as u8 | 128);
            rest >>= 7;
        }
        block.push(rest as u8);
    }

    fn string(block: &mut Vec<u8>, text: &str, dice: &mut Dice) {
        if text == ":authority" && dice.below(2) == 0 {
            Self::integer(block, 7, 0x80, 8);
            return block.extend([0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f]);
        }
        Self::integer(block, 7, 0, text.len());
        block.extend(text.as_bytes());
    }

    fn resize(&mut self, block: &mut Vec<u8>, limit: usize) {
        self.limit = limit;
        self.evict(0);
        Self::integer(block, 5, 0x20, limit);
    }

    fn field(&mut self, block: &mut Vec<u8>, field: &Field, dice: &mut Dice) {
        let (name, value) = field;
        if let Some(at) = self.table.iter().position(|entry| entry == field)
            && dice.below(4) > 0
        {
            return Self::integer(block, 7, 0x80, 62 + at);
        }
        let fixed = match (name.as_str(), value.as_str()) {
            (":authority", "") => Some(1),
            (":method", "POST") => Some(3),
            (":scheme", "http") => Some(6),
            _ => None,
        };
        if let Some(index) = fixed
            && dice.below(2) == 0
        {
            return Self::integer(block, 7, 0x80, index);
        }
        let (bits, flags) = [(6, 0x40), (6, 0x40), (4, 0), (4, 0x10)][dice.below(4)];
        let fixed = match name.as_str() {
            ":authority" => Some(1),
            ":method" => Some(2),
            ":path" => Some(4),
            ":scheme" => Some(7),
            _ => None,
        };
        let indexed = self.table.iter().position(|entry| entry.0 == *name).map(|at| 62 + at);
        match (indexed, fixed, dice.below(3)) {
            (Some(index), _, 0) | (_, Some(index), 1) => Self::integer(block, bits, flags, index),
            _ => {
                block.push(flags);
                Self::string(block, name, dice);
            }
        }
        Self::string(block, value, dice);
        if flags == 0x40 {
            self.insert(field);
        }
    }
}

/// One request: its fields as a server should see them, and how a client may write it.
fn request(dice: &mut Dice, encoder: &mut Encoder, stream: u32) -> (Vec<Field>, Vec<u8>) {
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let authority = if dice.below(20) == 0 { "/path".repeat(90) } else { AUTHORITIES[dice.below(6)].to_owned() };
    let path = format!("/service/{}", dice.below(3));
    let mut fields = vec![field(":method", "POST"), field(":scheme", "http"), field(":path", &path)];
    fields.insert(dice.below(4), field(":authority", &authority));
    // Two of the longest at most: beyond MAX_BLOCK_BYTES a block is refused, which is another test's matter.
    for number in 0..dice.below(6) {
        let lengths: &[usize] = if number < 2 { &[0, 8, 80, 900, 5000] } else { &[0, 8, 80, 900] };
        let long = lengths[dice.below(100) / 24 % lengths.len()];
        fields.push((format!("x-{}", dice.below(9)), format!("{:0long$}", dice.below(4))));
    }
    let mut block = Vec::new();
    if dice.below(20) == 0 {
        encoder.resize(&mut block, dice.below(200));
        if dice.below(2) == 0 {
            encoder.resize(&mut block, 4096);
        }
    } else if encoder.limit < 4096 && dice.below(4) == 0 {
        encoder.resize(&mut block, 4096);
    }
    for field in &fields {
        encoder.field(&mut block, field, dice);
    }
    fields.retain(|(name, _)| name != ":authority");

    let first = if dice.below(3) == 0 || block.len() > 9000 { dice.below(block.len().min(9000)) } else { block.len() };
    let mut payload = block[..first].to_vec();
    let mut flags = 1;
    if dice.below(3) == 0 {
        payload.splice(0..0, [0, 0, 0, 0, 7]);
        flags |= 0x20;
    }
    if dice.below(3) == 0 {
        let padding = dice.below(40);
        payload.insert(0, padding as u8);
        payload.resize(payload.len() + padding, 0);
        flags |= 0x8;
    }
    if first == block.len() {
        return (fields, frame(HEADERS, flags | 4, stream, &payload));
    }
    let mut wire = frame(HEADERS, flags, stream, &payload);
    let middle = first + dice.below((block.len() - first).min(9000));
    wire.extend(frame(9, 0, stream, &block[first..middle]));
    wire.extend(frame(9, 4, stream, &block[middle..]));
    (fields, wire)
}

/// Cuts bytes into pieces of random sizes.
fn cut(mut bytes: Vec<u8>, dice: &mut Dice) -> VecDeque<Vec<u8>> {
    let longest = [3, 40, 900, 70_000][dice.below(4)];
    let mut pieces = VecDeque::new();
    while !bytes.is_empty() {
        let rest = bytes.split_off(bytes.len().min(1 + dice.below(longest)));
        pieces.push_back(std::mem::replace(&mut bytes, rest));
    }
    pieces
}

/// What h2 makes of the next request.
async fn next<T: AsyncRead + AsyncWrite + Unpin>(server: &mut h2::server::Connection<T, bytes::Bytes>) -> Vec<Field> {
    let (request, mut answer) = server.accept().await.expect("no request").expect("h2 refused it");
    answer.send_response(http::Response::new(()), true).unwrap();
    assert!(request.uri().authority().is_none());
    let mut fields = vec![
        (":method".to_owned(), request.method().to_string()),
        (":scheme".to_owned(), "http".to_owned()),
        (":path".to_owned(), request.uri().path().to_owned()),
    ];
    fields.extend(request.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())));
    fields
}

/// Headers of one name keep their order, names come as a map gives them.
fn sorted(mut fields: Vec<Field>) -> Vec<Field> {
    fields.sort_by(|left, right| left.0.cmp(&right.0));
    fields
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn h2_sees_every_field_but_the_authority(seed: u64) {
        let mut dice = Dice(seed);
        let mut encoder = Encoder::new();
        let mut wire = [PREFACE.to_vec(), frame(4, 0, 0, &[])].concat();
        let mut sent = Vec::new();
        for number in 0..80 {
            let (fields, bytes) = request(&mut dice, &mut encoder, 2 * number + 1);
            wire.extend(bytes);
            if dice.below(2) == 0 {
                wire.extend(frame(6, 0, 0, b"12345678"));
            }
            sent.push(fields);
        }
        let pieces = Pieces { pieces: cut(wire, &mut dice), ends: false };
        block_on(async {
            let mut server = h2::server::handshake(WithoutAuthority::new(pieces)).await.unwrap();
            for fields in sent {
                assert_eq!(sorted(next(&mut server).await), sorted(fields));
            }
        });
    }

    #[test]
    fn whatever_comes_in_it_neither_panics_nor_grows(
        preface: bool,
        frames in prop::collection::vec((0_u8..11, any::<u8>(), 0_u32..3, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        seed: u64,
    ) {
        let mut wire = if preface { PREFACE.to_vec() } else { vec![] };
        for (kind, flags, stream, payload) in frames {
            wire.extend(frame(kind, flags, stream, &payload));
        }
        wire.extend(noise);
        let pieces = Pieces::ending(cut(wire.clone(), &mut Dice(seed)));
        let (one, _) = edited(Pieces::ending([wire.clone()]), 1 << 20);
        let (other, _) = edited(pieces, 1 + (seed % 64) as usize);
        prop_assert!(one.len() <= wire.len() && other.len() <= wire.len());
        // How much is passed on of what is refused depends on the pieces, nothing else does.
        let common = one.len().min(other.len());
        prop_assert_eq!(&one[..common], &other[..common]);
    }

    #[test]
    fn any_header_block_is_stripped_or_refused(block in prop::collection::vec(any::<u8>(), 0..300), table: u128) {
        let mut bytes = block.clone();
        let (len, _) = Table { authorities: table }.strip(&mut bytes);
        prop_assert!(len <= block.len());
    }
}

#[test]
fn every_form_of_the_authority_is_taken_out() {
    // (what the client sends, what h2 gets), one block after the other.
    let conversation: [(&[u8], &[u8]); 9] = [
        // Indexed in the static table: empty, as gRPC's C core has it.
        (&[0x83, 0x81, 0x86], &[0x83, 0x86]),
        // Raw path, name from the static table, inserted; then a field that is inserted after it.
        (b"\x83\x41\x06/x/y/z\x40\x01a\x01b", b"\x83\x40\x01a\x01b"),
        // Both from the table: 62 is the younger.
        (&[0xbe, 0xbf], &[0xbe]),
        // An older one and a younger one around it.
        (b"\x40\x01c\x01d", b"\x40\x01c\x01d"),
        (b"\xc0\xbf\xbe", b"\xbf\xbe"),
        // Never indexed, not indexed, and with the name spelt out, in Huffman code too.
        (b"\x11\x01/\x01\x01/\x83", b"\x83"),
        (b"\x00\x0a:authority\x01/\x00\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f\x00\x86", b"\x86"),
        // The name from the table, of an entry that was taken out; the value in Huffman code ("/x").
        (b"\x7f\x01\x82\x63\xcf\x86", b"\x86"),
        // The name of an entry that h2 has elsewhere: 64 is "a: b", which is 63 there.
        (b"\x0f\x31\x01e", b"\x0f\x30\x01e"),
    ];
    let mut table = Table::default();
    for (client, server) in conversation {
        let mut block = client.to_vec();
        let (len, outcome) = table.strip(&mut block);
        assert_eq!((&block[..len], outcome), (server, Ok(())), "{client:02x?}");
    }
}

#[test]
fn malformed_blocks_stay_as_they_are_from_there_on() {
    for malformed in [
        &b"\x80"[..],                    // index 0
        b"\xff\xff\xff\xff\xff\x00",     // an integer without end
        b"\xff\xc1\x00",                 // an entry that no table can hold
        b"\x41",                         // no value
        b"\x41\x05/x",                   // less of it than announced
        b"\x00\x0b:authority",           // less of a name
        b"\x41\x7f\xff\xff\xff\x7f1234", // a length beyond everything
    ] {
        let mut block = [b"\x83\x41\x01/", malformed].concat();
        let (len, outcome) = Table::default().strip(&mut block);
        assert_eq!(outcome, Err(block::Malformed), "{malformed:02x?}");
        assert_eq!(block[..len], [b"\x83", malformed].concat(), "{malformed:02x?}");
    }
}

/// A conversation with all that may surround a request.
fn conversation() -> Vec<u8> {
    [
        frame(4, 0, 0, &[]),
        frame(HEADERS, 4, 1, b"\x83\x86\x41\x06/x/y/z\x44\x02/p"),
        frame(0, 1, 1, b"first seed"),
        frame(HEADERS, 4 | 8 | 0x20, 3, b"\x03\0\0\0\0\x07\x83\x86\xbf\xbe\0\0\0"),
        frame(0, 1, 3, b"second seed"),
        frame(HEADERS, 0, 5, b"\x83\x86\x41"),
        frame(9, 0, 5, b"\x03%2"),
        frame(9, 4, 5, b"F\x44\x02/q"),
        frame(0, 0, 5, &[]),
        frame(0, 1, 5, b"third seed"),
        frame(HEADERS, END_BOTH, 7, b"\x83\x86\xbf\xbe"),
        frame(6, 0, 0, b"12345678"),
    ]
    .concat()
}

#[test]
fn a_conversation_reads_the_same_wherever_it_is_cut() {
    // As long as before: what is gone from a block is made up for with padding.
    let expected = [
        frame(4, 0, 0, &[]),
        frame(HEADERS, 4 | 8, 1, b"\x07\x83\x86\x44\x02/p\0\0\0\0\0\0\0"),
        frame(0, 1, 1, b"first seed"),
        frame(HEADERS, 4 | 8 | 0x20, 3, b"\x04\0\0\0\0\x07\x83\x86\xbe\0\0\0\0"),
        frame(0, 1, 3, b"second seed"),
        frame(HEADERS, 4 | 8, 5, &[b"\x16\x83\x86\x44\x02/q".as_slice(), &[0; 22]].concat()),
        frame(0, 0, 5, &[]),
        frame(0, 1, 5, b"third seed"),
        frame(HEADERS, END_BOTH | 8, 7, b"\0\x83\x86\xbe"),
        frame(6, 0, 0, b"12345678"),
    ]
    .concat();
    let wire = [PREFACE.to_vec(), conversation()].concat();
    let expected = [PREFACE.to_vec(), expected].concat();
    for cut in 0..=wire.len() {
        let pieces = [wire[..cut].to_vec(), wire[cut..].to_vec()];
        for buffer_bytes in [7, 1 << 16] {
            let (out, end) = edited(Pieces::ending(pieces.clone()), buffer_bytes);
            end.unwrap();
            assert_eq!(out, expected, "cut at {cut}");
        }
    }
    for piece in 1..20 {
        let (out, end) = edited(Pieces::ending(wire.chunks(piece).map(<[u8]>::to_vec)), 1 << 16);
        end.unwrap();
        assert_eq!(out, expected, "pieces of {piece}");
    }
}

/// A connection that ends half-way through a block: h2 gets what there was.
#[test]
fn what_is_held_at_the_end_is_passed_on() {
    let wire = [PREFACE, &conversation()[..9 + 9 + 5]].concat();
    let (out, end) = edited(Pieces::ending([wire.clone()]), 1 << 16);
    end.unwrap();
    assert_eq!(out, wire);
}

#[test]
fn bytes_of_data_are_never_held() {
    let wire = [PREFACE.to_vec(), conversation()].concat();
    for cut in PREFACE_BYTES..wire.len() {
        let mut stream = WithoutAuthority::new(Pieces::ending([wire[..cut].to_vec(), wire[cut..].to_vec()]));
        let mut buffer = vec![0; 1 << 16];
        while block_on(stream.read(&mut buffer)).unwrap() > 0 {
            let held = String::from_utf8_lossy(&stream.editor.held.bytes).into_owned();
            assert!(!held.contains("seed"), "cut at {cut}: {held}");
        }
    }
}

/// Too long for padding: a frame that h2 ignores takes the place.
#[test]
fn an_authority_of_any_length_leaves_a_block_as_long_as_before() {
    for len in 0..400_usize {
        let mut block = b"\x83\x86\x44\x02/p\x01".to_vec();
        Encoder::integer(&mut block, 7, 0, len);
        block.resize(block.len() + len, b'/');
        let wire = [PREFACE.to_vec(), frame(4, 0, 0, &[]), frame(HEADERS, END_BOTH, 1, &block)].concat();
        let (out, end) = edited(Pieces::ending([wire.clone()]), 1 << 16);
        end.unwrap();
        assert_eq!(out.len(), wire.len());
        let fields = block_on(async {
            let pieces = Pieces { pieces: [wire].into(), ends: false };
            next(&mut h2::server::handshake(WithoutAuthority::new(pieces)).await.unwrap()).await
        });
        assert_eq!(fields[2].1, "/p");
    }
}

#[test]
fn what_http2_forbids_is_passed_on_and_nothing_after_it() {
    let request = |stream| frame(HEADERS, END_BOTH, stream, b"\x83\x86\x44\x02/p");
    let forbidden: [(&str, Vec<u8>); 6] = [
        ("a malformed block", frame(HEADERS, END_BOTH, 1, &[0x80])),
        ("more padding than frame", frame(HEADERS, 0xd, 1, &[9, 0x83])),
        ("a promise by a client", frame(5, 4, 1, &[0, 0, 0, 2, 0x83])),
        ("a block that is interrupted", [frame(HEADERS, 1, 1, &[0x83]), frame(6, 0, 0, b"12345678")].concat()),
        ("a block on two streams", [frame(HEADERS, 1, 1, &[0x83]), frame(9, 4, 3, &[0x86])].concat()),
        ("a frame beyond the limit", frame(HEADERS, END_BOTH, 1, &vec![0; (16 << 10) + 1])),
    ];
    for (what, bytes) in forbidden {
        let wire = [PREFACE, &bytes].concat();
        for piece in [1, 64, 1 << 20] {
            let pieces = wire.chunks(piece).map(<[u8]>::to_vec).chain([request(9)]);
            let (out, end) = edited(Pieces::ending(pieces), 1 << 20);
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::InvalidData, "{what}");
            assert!(wire.starts_with(&out), "{what}");
        }
        // And h2 ends the connection with a GOAWAY of its own, before the error of the read.
        let error = block_on(async {
            let pieces = Pieces { pieces: [wire].into(), ends: false };
            let mut server = h2::server::handshake(WithoutAuthority::new(pieces)).await.unwrap();
            server.accept().await.unwrap().unwrap_err()
        });
        assert!(error.is_go_away() && error.is_library(), "{what}: {error}");
    }
}

#[test]
fn a_block_without_end_is_refused() {
    let endless = [
        [frame(HEADERS, 1, 1, &[]), frame(9, 0, 1, &[]).repeat(100)].concat(),
        [frame(HEADERS, 1, 1, &[0x83; 9000]), frame(9, 0, 1, &[0x83; 9000])].concat(),
    ];
    for wire in endless {
        let pieces = [PREFACE, &wire].concat().chunks(512).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let (_, end) = edited(Pieces::ending(pieces), 1 << 20);
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

/// h2's own client, which Huffman-codes and indexes, fills the table many times over: deadlines differ in each request.
#[tokio::test]
async fn thousands_of_requests_of_a_real_client_keep_their_headers() {
    let (near, far) = tokio::io::duplex(256);
    let requests = 3000_u32;
    let client = tokio::spawn(async move {
        let (mut sender, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        for number in 0..requests {
            let request = http::Request::post(format!("http://host-{}/service/{}", number % 5, number % 3))
                .header("grpc-timeout", format!("{number}u"))
                .header("user-agent", "grpc-go/1.65.0")
                .body(())
                .unwrap();
            poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
            sender.send_request(request, true).unwrap().0.await.unwrap();
        }
    });
    let mut server = h2::server::handshake(WithoutAuthority::new(far)).await.unwrap();
    for number in 0..requests {
        let fields = next(&mut server).await;
        assert!(fields.contains(&(":path".to_owned(), format!("/service/{}", number % 3))), "{fields:?}");
        assert!(fields.contains(&("grpc-timeout".to_owned(), format!("{number}u"))), "{fields:?}");
        assert!(fields.contains(&("user-agent".to_owned(), "grpc-go/1.65.0".to_owned())), "{fields:?}");
    }
    tokio::select! {
        _ = server.accept() => {}
        outcome = client => outcome.unwrap(),
    }
}

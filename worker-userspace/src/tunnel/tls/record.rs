//! Records of TLS: sealing and opening them (RFC 8446, 5; RFC 5246, 6.2 with RFC 5288 and RFC 7905).
//!
//! rustls makes the handshake and all keys. The records are our own because they are the data path: rustls asks the
//! socket for 4 KiB at a time and copies what it decrypts twice; here a record is opened where the socket's read put
//! it, and handed on from there.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use bytes::{Buf, BytesMut};
use rustls::ConnectionTrafficSecrets;

/// Most bytes of content in one record.
pub(super) const MOST: usize = 16 * 1024;
/// Bytes of a record's header.
const HEADER: usize = 5;
/// Bytes of each algorithm's tag.
const TAG: usize = 16;
/// Bytes of the part of a nonce that TLS 1.2 sends with AES-GCM.
const EXPLICIT: usize = 8;
/// Most bytes that a record adds to its content: header, explicit nonce or type, tag.
pub(super) const OVERHEAD: usize = HEADER + EXPLICIT + TAG;
/// Most bytes of a record behind its header: TLS 1.3, then 1.2.
const LONGEST: [usize; 2] = [MOST + 256, MOST + 2048];

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// What a peer sent that is no record of this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("a TLS record of type {0}")]
    Type(u8),
    #[error("a TLS record of {0} bytes, which is more than there may be")]
    TooLong(usize),
    #[error("a TLS record that was altered on its way, or is not the next")]
    Altered,
    #[error("a TLS record without content and type")]
    Empty,
    #[error("so many TLS records that their numbers are used up")]
    Overflow,
}

/// The key of one direction, and the number of its next record.
struct Direction {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    /// TLS 1.3: types are encrypted too.
    is_new: bool,
    /// Bytes of the nonce that are sent.
    explicit: usize,
}

impl Direction {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets), is_new: bool) -> Option<Direction> {
        use ConnectionTrafficSecrets as Secrets;
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match &secrets {
            Secrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            Secrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            Secrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        let explicit = if is_new || *algorithm == CHACHA20_POLY1305 { 0 } else { EXPLICIT };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        let iv = iv.as_ref().try_into().ok()?;
        Some(Direction { key, iv, sequence, is_new, explicit })
    }

    /// The next record's number.
    fn next(&mut self) -> Result<u64, Fault> {
        let sequence = self.sequence;
        self.sequence = sequence.checked_add(1).ok_or(Fault::Overflow)?;
        Ok(sequence)
    }

    fn nonce(&self, sequence: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, of) in nonce[NONCE_LEN - 8..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= of;
        }
        nonce
    }

    /// What is authenticated beside the content: TLS 1.3 has the header, TLS 1.2 number, type, version and length.
    fn aad(&self, sequence: u64, kind: u8, header: [u8; HEADER], content: usize) -> ([u8; 13], usize) {
        let mut aad = [0; 13];
        if self.is_new {
            aad[..HEADER].copy_from_slice(&header);
            return (aad, HEADER);
        }
        aad[..8].copy_from_slice(&sequence.to_be_bytes());
        aad[8..11].copy_from_slice(&[kind, 3, 3]);
        aad[11..].copy_from_slice(&(content as u16).to_be_bytes());
        (aad, 13)
    }
}

fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [high, low] = (length as u16).to_be_bytes();
    [kind, 3, 3, high, low]
}

/// Seals what is sent.
pub(super) struct Sealer {
    direction: Direction,
    /// Records that this key may still seal (RFC 8446, 5.5).
    left: u64,
}

impl Sealer {
    /// Of a key, with the number of the next record. `limit`: how many records the algorithm bears. `None`: it is none
    /// that we know.
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets), is_new: bool, limit: u64) -> Option<Sealer> {
        let direction = Direction::new(secrets, is_new)?;
        Some(Sealer { left: limit.saturating_sub(direction.sequence), direction })
    }

    /// Records that may still be sealed with this key.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Leaves so many, for tests.
    #[cfg(test)]
    pub(super) fn spend(&mut self, left: u64) {
        self.left = left;
    }

    /// Seals one record behind what is in `out`. Its content is what `fill` adds there, at most [`MOST`] bytes.
    pub(super) fn seal(
        &mut self,
        kind: Kind,
        out: &mut Vec<u8>,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Fault> {
        let sequence = self.direction.next()?;
        self.left = self.left.saturating_sub(1);
        let Direction { is_new, explicit, .. } = self.direction;
        let nonce = self.direction.nonce(sequence);
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        out.extend_from_slice(&nonce[NONCE_LEN - explicit..]);
        let content = out.len();
        fill(out);
        let length = out.len() - content;
        if length > MOST {
            return Err(Fault::TooLong(length));
        }
        if is_new {
            out.push(kind as u8);
        }
        let outer = if is_new { Kind::Data } else { kind };
        let head = header(outer as u8, out.len() - start - HEADER + TAG);
        out[start..start + HEADER].copy_from_slice(&head);
        let (aad, of) = self.direction.aad(sequence, kind as u8, head, length);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed =
            self.direction.key.seal_in_place_separate_tag(nonce, Aad::from(&aad[..of]), &mut out[content..]);
        // It fails for more bytes than there are in a record only.
        out.extend_from_slice(sealed.map_err(|_| Fault::TooLong(length))?.as_ref());
        Ok(())
    }
}

/// Opens what is received.
pub(super) struct Opener(Direction);

impl Opener {
    /// As [`Sealer::new`].
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets), is_new: bool) -> Option<Opener> {
        Direction::new(secrets, is_new).map(Opener)
    }

    /// Takes the next record off `input`, and opens it where it is. `Err` of a number: so many bytes are needed.
    pub(super) fn open(&mut self, input: &mut BytesMut) -> Result<Result<(Kind, BytesMut), usize>, Fault> {
        let Some(&head) = input.first_chunk::<HEADER>() else { return Ok(Err(HEADER)) };
        let Direction { is_new, explicit, .. } = self.0;
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        // What comes in the clear, too: it is none of this connection's.
        let outer = match head[0] {
            23 => Kind::Data,
            22 if !is_new => Kind::Handshake,
            21 if !is_new => Kind::Alert,
            other => return Err(Fault::Type(other)),
        };
        if length > LONGEST[usize::from(!is_new)] {
            return Err(Fault::TooLong(length));
        }
        if input.len() < HEADER + length {
            return Ok(Err(HEADER + length));
        }
        let mut record = input.split_to(HEADER + length);
        record.advance(HEADER);
        let sequence = self.0.next()?;
        let mut nonce = self.0.nonce(sequence);
        if explicit > 0 {
            let sent = record.get(..explicit).ok_or(Fault::Altered)?;
            nonce[NONCE_LEN - explicit..].copy_from_slice(sent);
            record.advance(explicit);
        }
        let content = record.len().checked_sub(TAG).ok_or(Fault::Altered)?;
        let (aad, of) = self.0.aad(sequence, outer as u8, head, content);
        self.0
            .key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(&aad[..of]), &mut record)
            .map_err(|_| Fault::Altered)?;
        record.truncate(content);
        let kind = if is_new { inner(&mut record)? } else { outer };
        match record.len() > MOST {
            true => Err(Fault::TooLong(record.len())),
            false => Ok(Ok((kind, record))),
        }
    }
}

/// Takes padding and type off the end.
fn inner(record: &mut BytesMut) -> Result<Kind, Fault> {
    let at = record.iter().rposition(|byte| *byte != 0).ok_or(Fault::Empty)?;
    let kind = match record[at] {
        21 => Kind::Alert,
        22 => Kind::Handshake,
        23 => Kind::Data,
        other => return Err(Fault::Type(other)),
    };
    record.truncate(at);
    Ok(kind)
}

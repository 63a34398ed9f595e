//! Bytes that both ends of a connection can compute: a seed says all of them.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// The stream of bytes of one seed. Any part of it can be computed by itself, in chunks of any size.
#[derive(Debug, Clone)]
pub struct Bytes {
    seed: u64,
    position: u64,
    end: u64,
}

impl Bytes {
    /// The first `length` bytes of the stream of `seed`.
    pub fn new(seed: u64, length: u64) -> Bytes {
        Bytes { seed, position: 0, end: length }
    }

    /// The hexadecimal SHA-256 of the bytes that are left.
    pub fn sha256(mut self) -> String {
        let mut hash = Hash::default();
        let mut chunk = [0; 4096];
        while let Ok(read) = self.read(&mut chunk) {
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
        }
        hash.finish()
    }

    /// Eight bytes at once: the finaliser of SplitMix64 over a counter.
    fn word(&self, index: u64) -> [u8; 8] {
        let mut x = self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)).to_le_bytes()
    }
}

impl Read for Bytes {
    /// Never fails.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let mut done = 0;
        while done < length {
            let skip = (self.position % 8) as usize;
            let word = self.word(self.position / 8);
            let take = (8 - skip).min(length - done);
            buffer[done..done + take].copy_from_slice(&word[skip..skip + take]);
            done += take;
            self.position += take as u64;
        }
        Ok(length)
    }
}

/// A count and a hash of what went by.
#[derive(Default)]
pub struct Hash {
    count: u64,
    state: Sha256,
}

impl Hash {
    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.count += bytes.len() as u64;
        self.state.update(bytes);
    }

    /// How many bytes there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The hexadecimal SHA-256.
    pub fn finish(self) -> String {
        self.state.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_does_not_depend_on_the_chunks() -> io::Result<()> {
        let mut whole = Vec::new();
        Bytes::new(7, 1000).read_to_end(&mut whole)?;
        assert_eq!(whole.len(), 1000);
        for chunk in [1, 3, 8, 13, 999] {
            let (mut bytes, mut parts, mut buffer) = (Bytes::new(7, 1000), Vec::new(), vec![0; chunk]);
            loop {
                match bytes.read(&mut buffer)? {
                    0 => break,
                    read => parts.extend_from_slice(&buffer[..read]),
                }
            }
            assert_eq!(parts, whole, "chunks of {chunk}");
        }
        Ok(())
    }

    #[test]
    fn seeds_and_lengths_differ_in_their_hash() {
        let hash = |seed, length| Bytes::new(seed, length).sha256();
        assert_eq!(hash(1, 0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_ne!(hash(1, 100), hash(2, 100));
        assert_ne!(hash(1, 100), hash(1, 101));
    }
}

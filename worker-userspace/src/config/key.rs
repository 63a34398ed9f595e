//! Worker keys: the secret that a group's workers share, and the hash that the appliance keeps of it.
//!
//! What must hold: no `Debug` or `Display` shows a key; keys and hashes are compared in constant time.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;

use rand::TryRngCore;
use rand::rand_core::OsError;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};

/// Every key begins with this, so that secret scanners and people know one when they see it.
const PREFIX: &str = "dwk_";
/// 32 bytes in base64url without padding.
const BODY: usize = 43;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A worker key: `dwk_` and 32 random bytes in base64url (43 characters, no padding).
#[derive(Clone)]
pub struct Key(Box<str>);

impl Key {
    /// A new key from the operating system's randomness.
    ///
    /// # Errors
    /// The kernel gave no randomness.
    pub fn generate() -> Result<Key, OsError> {
        Ok(Key(secret(PREFIX)?.into()))
    }

    /// The SHA-256 of the whole text, prefix included: what `sha256sum` prints for it.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0)
    }

    /// The secret itself, for the `Authorization` header and for showing a new key once.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// 32 bytes of the operating system's randomness in base64url, behind `prefix`.
///
/// # Errors
/// The kernel gave no randomness.
pub(crate) fn secret(prefix: &str) -> Result<String, OsError> {
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes)?;
    let mut text = String::with_capacity(prefix.len() + BODY);
    text.push_str(prefix);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(group >> (18 - 6 * i)) as usize & 63]));
        }
    }
    Ok(text)
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Key, KeyError> {
        let body = text.strip_prefix(PREFIX).ok_or(KeyError::Prefix)?;
        if !body.bytes().all(|b| ALPHABET.contains(&b)) {
            return Err(KeyError::Alphabet);
        }
        if body.len() != BODY {
            return Err(KeyError::Length(text.len()));
        }
        Ok(Key(text.into()))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.hash() == other.hash()
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The key of a VDI gateway, of any form.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Box<str>);

impl ApiKey {
    pub(super) fn new(text: &str) -> ApiKey {
        ApiKey(text.into())
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

/// The SHA-256 of a [`Key`] or of another secret, written as 64 hexadecimal digits.
///
/// It has no `Hash` and no order on purpose: a table keyed by it would compare in variable time. Walk the
/// groups instead; there are few.
#[derive(Clone, Copy)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of any secret.
    pub fn of(secret: &str) -> KeyHash {
        KeyHash(Sha256::digest(secret.as_bytes()).into())
    }

    /// Enough of it to tell keys apart where people read: its first 12 digits.
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl PartialEq for KeyHash {
    /// Looks at all 32 bytes whatever they are, so that the time taken does not tell how many are right.
    /// `black_box` keeps the compiler from leaving the loop early.
    fn eq(&self, other: &KeyHash) -> bool {
        let differing = self.0.iter().zip(other.0).fold(0, |bits, (a, b)| black_box(bits | (a ^ b)));
        black_box(differing) == 0
    }
}

impl Eq for KeyHash {}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

impl FromStr for KeyHash {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<KeyHash, KeyError> {
        if text.starts_with(PREFIX) {
            return Err(KeyError::NotHashed);
        }
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(KeyError::HashLength(text.chars().count()));
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            let digit = |d: u8| char::from(d).to_digit(16).ok_or(KeyError::HashDigits);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(KeyHash(hash))
    }
}

/// Why a text is no key or no hash of one. The text itself is never shown: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No `dwk_` in front.
    #[error("it does not begin with `dwk_`, as every worker key does")]
    Prefix,
    /// Not base64url.
    #[error("it has a character that is not a letter, a digit, `-` or `_`")]
    Alphabet,
    /// Cut off, or too long.
    #[error("it has {0} characters; a worker key has 47")]
    Length(usize),
    /// The key where its hash belongs.
    #[error("it is a worker key, where only the key's SHA-256 may stand")]
    NotHashed,
    /// Cut off, or too long.
    #[error("it has {0} characters; a SHA-256 has 64 hexadecimal digits")]
    HashLength(usize),
    /// Not hexadecimal.
    #[error("it has a character that is no hexadecimal digit")]
    HashDigits,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes that a key's text stands for, by plain arithmetic instead of the encoder's.
    fn decode(key: &Key) -> Vec<u8> {
        let body = &key.reveal()[PREFIX.len()..];
        let bits: String = body
            .bytes()
            .map(|b| format!("{:06b}", ALPHABET.iter().position(|a| *a == b).expect("alphabet")))
            .collect();
        assert!(bits[256..].bytes().all(|b| b == b'0'), "bits behind the 32 bytes");
        (0..32).map(|i| u8::from_str_radix(&bits[8 * i..8 * i + 8], 2).expect("bits")).collect()
    }

    #[test]
    fn a_new_key_is_valid_random_and_32_bytes_long() {
        let keys: Vec<Key> = (0..64).map(|_| Key::generate().expect("randomness")).collect();
        let mut seen = [0u8; 32];
        for key in &keys {
            assert_eq!(key.reveal().parse::<Key>().as_ref(), Ok(key));
            for (all, byte) in seen.iter_mut().zip(decode(key)) {
                *all |= byte;
            }
        }
        assert_eq!(seen, [255; 32], "a bit that is never set is not random");
        assert!(keys.iter().enumerate().all(|(i, key)| !keys[..i].contains(key)));
    }

    #[test]
    fn the_hash_is_that_of_the_whole_text() {
        // printf %s dwk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA | sha256sum
        let key: Key = format!("dwk_{}", "A".repeat(43)).parse().expect("key");
        assert_eq!(key.hash().to_string(), EXPECTED);
        assert_eq!(EXPECTED.to_uppercase().parse(), Ok(key.hash()));
    }

    const EXPECTED: &str = "e2b85a3d0c4fe78d32c60be53475eb1d90896657c0340622f12dd8fc717aa420";

    #[test]
    fn a_key_is_never_shown() {
        let key = Key::generate().expect("randomness");
        assert_eq!(format!("{key} {key:?}"), "*** Key(***)");
    }

    #[test]
    fn what_is_no_key_says_why() {
        let good = format!("dwk_{}", "k".repeat(43));
        for (text, why) in [
            ("", KeyError::Prefix),
            (&good[4..], KeyError::Prefix),
            (&good[..46], KeyError::Length(46)),
            (&format!("{good}k"), KeyError::Length(48)),
            (&format!("{}+", &good[..46]), KeyError::Alphabet),
            (&format!("{}\u{e9}", &good[..46]), KeyError::Alphabet),
        ] {
            assert_eq!(text.parse::<Key>(), Err(why), "{text:?}");
        }
        for (text, why) in [
            (good.as_str(), KeyError::NotHashed),
            ("", KeyError::HashLength(0)),
            (&"a".repeat(63), KeyError::HashLength(63)),
            (&"g".repeat(64), KeyError::HashDigits),
            (&"\u{e9}".repeat(32), KeyError::HashDigits),
        ] {
            assert_eq!(text.parse::<KeyHash>(), Err(why), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn hashes_are_equal_only_to_themselves(hash: [u8; 32], at in 0usize..32, flip in 1u8..) {
            let mut other = hash;
            other[at] ^= flip;
            prop_assert_eq!(KeyHash(hash), KeyHash(hash));
            prop_assert_ne!(KeyHash(hash), KeyHash(other));
            prop_assert_eq!(KeyHash(hash).to_string().parse(), Ok(KeyHash(hash)));
        }
    }
}

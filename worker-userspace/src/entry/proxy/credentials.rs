//! The user and password that the entries ask for.
//!
//! What must hold: they are compared in constant time, as hashes; nothing shows them.

use std::fmt;

use crate::basic;
use crate::config::{KeyHash, Password};

/// Who is let in.
pub struct Credentials {
    user: String,
    /// Of `user:password`.
    plain: KeyHash,
    /// Of the same in base64, as Basic has it (RFC 7617).
    basic: KeyHash,
}

impl Credentials {
    /// One user, whose name has no colon.
    pub fn new(user: String, password: &Password) -> Credentials {
        let basic = KeyHash::of(&basic::token(&user, password.reveal()));
        let plain = KeyHash::of(&format!("{user}:{}", password.reveal()));
        Credentials { user, plain, basic }
    }

    /// The user's name, where these are the user and the password.
    pub(super) fn check(&self, user: &[u8], password: &[u8]) -> Option<&str> {
        let plain = String::from_utf8([user, b":", password].concat()).ok()?;
        // Where a colon stands in the user, another password begins behind it.
        let right = (KeyHash::of(&plain) == self.plain) & !user.contains(&b':');
        right.then_some(&*self.user)
    }

    /// The user's name, where this is the value of a right `Proxy-Authorization` header.
    pub(super) fn check_basic(&self, header: &str) -> Option<&str> {
        let (scheme, token) = header.split_once(' ')?;
        let right = KeyHash::of(token.trim()) == self.basic;
        (scheme.eq_ignore_ascii_case("Basic") & right).then_some(&*self.user)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Login;

    fn credentials(user: &str, password: &str) -> Credentials {
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, password).unwrap();
        let login = Login { user: user.into(), password_file };
        let password = login.read().unwrap();
        Credentials::new(login.user, &password)
    }

    #[test]
    fn only_the_right_user_with_the_right_password_is_let_in() {
        // The example of RFC 7617.
        let aladdin = credentials("Aladdin", "open sesame\n");
        assert_eq!(aladdin.check_basic("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), Some("Aladdin"));
        assert_eq!(aladdin.check_basic("basic  QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), Some("Aladdin"));
        assert_eq!(aladdin.check(b"Aladdin", b"open sesame"), Some("Aladdin"));
        for wrong in [
            "Basic",
            "Basic ",
            "Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZA==",
            "",
        ] {
            assert_eq!(aladdin.check_basic(wrong), None, "{wrong:?}");
        }
        for (user, password) in
            [(&b"aladdin"[..], &b"open sesame"[..]), (b"Aladdin", b""), (b"", b""), (b"\xff", b"\xfe")]
        {
            assert_eq!(aladdin.check(user, password), None);
        }
        let colon = credentials("a", "b:c");
        assert_eq!((colon.check(b"a", b"b:c"), colon.check(b"a:b", b"c")), (Some("a"), None));
        assert!(!format!("{colon:?}").contains("b:c"));
    }
}

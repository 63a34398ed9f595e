//! What a process and the one that takes over from it say to each other: whole messages with descriptors, each with a
//! deadline, over a pair of sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::sockets::{Named, passed};

/// The variable by which a process knows its end. What begins with `DWORKER_` is configuration.
pub(super) const VARIABLE: &str = "_DWORKER_HANDOVER";
/// The kernel passes 253 descriptors at once.
const AT_ONCE: usize = 128;
/// The longest message: the names of that many descriptors, or why it did not work.
const LONGEST: usize = 64 * 1024;
/// How long the other side may take to make room for a message.
const SEND: Duration = Duration::from_secs(5);

/// A message.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Message {
    /// The new process has read its configuration and what it names.
    Prepared {
        /// Its id.
        pid: u32,
    },
    /// Descriptors for the new process, by name.
    Descriptors(Vec<String>),
    /// These were all; the old process stands still.
    TakeOver {
        /// Steering is switched off by hand.
        off: bool,
    },
    /// The new process could serve now.
    Ready,
    /// It may.
    Go,
    /// It does.
    Serving,
    /// It can't.
    Failed(String),
}

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    pub(super) fn pair() -> io::Result<(Channel, Channel)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Channel(one), Channel(other)))
    }

    /// The end that the process before this one has passed, if it has started this one.
    pub(super) fn inherited() -> Option<Channel> {
        let descriptor = std::env::var(VARIABLE).ok()?.parse().ok()?;
        // SAFETY: by the variable the process that has started this one passed this descriptor to it, for it alone.
        unsafe { passed(descriptor) }.map(Channel)
    }

    /// Says and hears nothing any more: whoever waits on either side is told the end.
    pub(super) fn end(&self) {
        // The other side may have ended it.
        let _ = SockRef::from(&self.0).shutdown(Shutdown::Both);
    }

    /// Sends a message, with descriptors.
    pub(super) fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        SockRef::from(&self.0).set_write_timeout(Some(SEND))?;
        let mut text = serde_json::to_vec(message)?;
        if text.len() > LONGEST {
            text = serde_json::to_vec(&Message::Failed("for a reason that is too long to tell".into()))?;
        }
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&text)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Sends all of these, in several messages where they are many.
    pub(super) fn send_all(&self, all: &[Named]) -> io::Result<()> {
        for some in all.chunks(AT_ONCE) {
            let names = some.iter().map(|(name, _)| name.clone()).collect();
            let descriptors: Vec<_> = some.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
            self.send(&Message::Descriptors(names), &descriptors)?;
        }
        Ok(())
    }

    /// The next message. `UnexpectedEof`: the other process is gone.
    pub(super) fn receive(&self, within: Duration) -> io::Result<(Message, Vec<Named>)> {
        // Zero would be for ever.
        let within = within.max(Duration::from_millis(1));
        SockRef::from(&self.0).set_read_timeout(Some(within))?;
        let mut text = vec![0; LONGEST];
        let mut space = cmsg_space!([std::os::fd::RawFd; AT_ONCE]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut text)];
        let received = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let mut descriptors = Vec::new();
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for us.
                descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        let length = received.bytes;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let message: Message = serde_json::from_slice(&text[..length])?;
        let names = match &message {
            Message::Descriptors(names) => names.clone(),
            _ => Vec::new(),
        };
        if names.len() != descriptors.len() {
            return Err(io::Error::other(
                "descriptors were lost on the way: is the limit of open files reached?",
            ));
        }
        Ok((message, names.into_iter().zip(descriptors).collect()))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn messages_arrive_whole_with_their_descriptors_and_an_end_is_seen() {
        let (old, new) = Channel::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let many: Vec<Named> =
            (0..300).map(|n| (format!("dns {n}"), listener.as_fd().try_clone_to_owned().unwrap())).collect();
        old.send(&Message::Go, &[]).unwrap();
        old.send_all(&many).unwrap();
        let soon = Duration::from_secs(10);
        assert_eq!(new.receive(soon).unwrap().0, Message::Go);
        let mut got = Vec::new();
        while got.len() < many.len() {
            got.extend(new.receive(soon).unwrap().1);
        }
        assert!(got.iter().zip(&many).all(|((name, _), (sent, _))| name == sent));
        let passed = TcpListener::from(got.pop().unwrap().1);
        assert_eq!(passed.local_addr().unwrap(), listener.local_addr().unwrap());
        let late = new.receive(Duration::from_millis(1)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::WouldBlock);
        new.send(&Message::Failed("x".repeat(LONGEST)), &[]).unwrap();
        let Message::Failed(why) = old.receive(soon).unwrap().0 else { panic!("it failed") };
        assert!(why.contains("too long"));
        drop(new);
        assert_eq!(old.receive(soon).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(old.send(&Message::Go, &[]).is_err());
    }
}
